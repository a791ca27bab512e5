"""
What goes to the Hugging Face Hub: the cards of models and data sets, the licences of their sources, and the pushes.

Enters: a folder that a run left. Leaves: a repository. Its public names are those of `trl_sdpo`: `push_model`, `push_dataset`,
`HubPushError`.
"""
