"""The page of `trl-sdpo demo`: build a history, see what is recommended after it, and what the list depends on."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import FastAPI, Request, Response

from .histories import AS_IT_IS, VARIATIONS, WITHOUT, KnownUser, TitleSearch, vary
from .lists_html import STYLE, list_html, side_by_side


if TYPE_CHECKING:
    from ..recommender.recommender import Recommender

# No font, script, frame or picture from elsewhere, whatever a library's page asks for; Gradio's own page is made of
# scripts and styles within it
_CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'none'; object-src 'none'"
)
_FONTS = ["system-ui", "sans-serif"]
_INTRODUCTION = (
    "Search the catalogue and click a title to add it to the history, oldest first, or load a test user. The list shows "
    "the likeliest next titles; a probability is that of the title as the model's answer. Change the history to see what "
    "the list depends on."
)


class Page:
    """
    What the page does, without its widgets.

    Args:
        recommenders (`dict[str, Recommender]`):
            The model by its name, and those that stand beside it.
        users (`Sequence[KnownUser]`, *optional*):
            Whose histories can be loaded.
        top_k (`int`, *optional*, defaults to `10`):
            Length of a list.
    """

    def __init__(
        self, recommenders: "dict[str, Recommender]", users: Sequence[KnownUser] = (), top_k: int = 10
    ) -> None:
        self.recommenders, self.top_k = recommenders, top_k
        self.users = {user.name: user for user in users}
        self.catalogue = next(iter(recommenders.values())).catalogue
        self.search = TitleSearch(self.catalogue)
        self._titles = dict(zip(self.catalogue.item_ids, self.catalogue.titles, strict=True))

    def choices(self, item_ids: Sequence[str]) -> list[tuple[str, str]]:
        """(title, id) of items, as widgets take them."""
        return [(self._titles[item_id], item_id) for item_id in item_ids]

    def lists(self, history: Sequence[str], variation: str, without: str | None, user: str | None) -> str:
        """
        The lists of all models after a history, as HTML, with marks for what a changed history changed.

        Args:
            history (`Sequence[str]`):
                Item ids, oldest first.
            variation (`str`), without (`str`, *optional*):
                See [`~serving.histories.vary`].
            user (`str`, *optional*):
                The test user whose history it is, to mark what came next.
        """
        if not history:
            return "<p>The history is empty. Add a title, or load a test user.</p>"
        if variation == WITHOUT and without not in history:
            return "<p>Choose which item to leave out.</p>"
        changed = vary(history, variation, without)
        if not changed:
            return "<p>Nothing is left of the history. Add another title.</p>"
        known = self.users.get(user) if user else None
        truth = known.target if known and list(known.history) == list(history) else None
        tables = []
        for name, recommender in self.recommenders.items():
            # what the user had is not recommended, whatever is left out of the history
            (items,) = self._recommend(recommender, [changed], history)
            before = self._recommend(recommender, [list(history)], history)[0] if variation != AS_IT_IS else None
            caption = name if variation == AS_IT_IS else f"{name}, history {variation}"
            tables.append(list_html(caption, items, self.catalogue, against=before, truth=truth))
        return side_by_side(tables)

    def _recommend(self, recommender: "Recommender", histories: list[list[str]], had: Sequence[str]) -> list:
        found = recommender.recommend_ids(histories, top_k=self.top_k + len(had), exclude_history=True)
        return [[item for item in items if item.item_id not in set(had)][: self.top_k] for items in found]


def make_page(page: Page, title: str = "trl-sdpo") -> gr.Blocks:
    """The widgets, bound to what they do."""
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {title}\n\n{_INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                widgets = _history_widgets(page)
            with gr.Column(scale=2, min_width=300):
                lists = gr.HTML(page.lists([], AS_IT_IS, None, None), label="Recommendations", elem_id="lists")
        _bind(page, widgets, lists)
    return blocks


def _history_widgets(page: Page) -> dict[str, Any]:
    widgets = {}
    if page.users:
        names = [(f"user {name}", name) for name in page.users]
        widgets["user"] = gr.Dropdown(names, value=None, label="Test user", elem_id="user")
    else:
        widgets["user"] = gr.State(None)
    widgets["query"] = gr.Textbox(label="Search the catalogue", placeholder="words of a title", elem_id="query")
    found = page.choices(page.search.find(""))
    widgets["found"] = gr.Radio(found, value=None, label="Click to add to the history", elem_id="found")
    widgets["history"] = gr.Dropdown(
        [], value=[], multiselect=True, label="History, oldest first", elem_id="history", interactive=True
    )
    widgets["clear"] = gr.Button("Empty the history", size="sm")
    widgets["variation"] = gr.Radio(list(VARIATIONS), value=AS_IT_IS, label="The history", elem_id="variation")
    widgets["without"] = gr.Dropdown([], value=None, label="Left out", visible=False, elem_id="without")
    widgets["go"] = gr.Button("Recommend", variant="primary", elem_id="go")
    return widgets


def _bind(page: Page, widgets: dict[str, Any], lists: gr.HTML) -> None:
    history, variation, without = widgets["history"], widgets["variation"], widgets["without"]

    def search(text: str) -> Any:
        return gr.update(choices=page.choices(page.search.find(text or "")), value=None)

    def show(item_ids: list[str]) -> tuple[Any, Any]:
        choices = page.choices(item_ids)
        return gr.update(choices=choices, value=item_ids), gr.update(choices=choices, value=None)

    def add(item_id: str | None, item_ids: list[str]) -> tuple[Any, Any, Any]:
        item_ids = item_ids if item_id is None or item_id in item_ids else [*item_ids, item_id]
        return *show(item_ids), None

    def load(name: str | None) -> tuple[Any, Any]:
        return show(page.users[name].history if name else [])

    _quietly(widgets["query"].change, search, widgets["query"], widgets["found"])
    _quietly(widgets["found"].input, add, [widgets["found"], history], [history, without, widgets["found"]])
    _quietly(widgets["clear"].click, lambda: show([]), None, [history, without])
    _quietly(history.input, lambda item_ids: show(item_ids)[1], history, without)
    _quietly(variation.change, lambda value: gr.update(visible=value == WITHOUT), variation, without)
    if page.users:
        _quietly(widgets["user"].change, load, widgets["user"], [history, without])
    widgets["go"].click(
        page.lists,
        [history, variation, without, widgets["user"]],
        lists,
        show_progress="full",
        api_visibility="private",
    )


def _quietly(event: Callable, function: Callable, inputs: Any, outputs: Any) -> None:
    event(function, inputs, outputs, show_progress="hidden", queue=False, api_visibility="private")


def page_options() -> dict[str, Any]:
    """What Gradio takes with a page when it is served: fonts of the machine, our style, no links of its own."""
    theme = gr.themes.Default(font=_FONTS, font_mono=["monospace"])
    return {"theme": theme, "css": STYLE, "footer_links": [], "run_history": False}


def make_app(page: Page, title: str = "trl-sdpo") -> FastAPI:
    """The page as an application that asks nobody but itself for anything."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def only_from_here(request: Request, call_next: Callable) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _CONTENT_POLICY
        return response

    return gr.mount_gradio_app(app, make_page(page, title), path="/", **page_options())
