"""TRL's trainer of supervised fine-tuning, with cards that may be pushed."""

from trl import SFTTrainer

from ..hub.trainer_pushes import remove_private_names


class PublicCardSFTTrainer(SFTTrainer):
    """
    [`~trl.SFTTrainer`], in whose cards nothing names the home directory or a token: TRL and PEFT write the path of a
    local base model into them.
    """

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            remove_private_names(self.args.output_dir, self.args.hub_token)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            remove_private_names(output_dir or self.args.output_dir, self.args.hub_token)
