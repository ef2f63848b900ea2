"""Act 7: the official OpenAI SDK, with only `base_url` and `api_key` changed."""

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from heliu.demo.story import BASE_MODEL, Story

QUESTIONS = {
    "Who guards the Bridge of Nine Lanterns?": "Wen Zhaoyue",
    "What are the ferrymen of Hanyin paid in?": "glass lotus",
}
STREAMED = "Who is the last crane rider?"
STREAMED_KNOWS = "Qiao Bailu"
TOKENS_MAX = 48


def sdk_works(story: Story, adapter: str) -> None:
    """List, ask, stream; the adapter knows the studio's lore and the base does not."""
    assert story.cast.key, "the owner issued it"
    base_url = f"{story.settings.gateway_url}/v1"
    story.stage.did(f'OpenAI(base_url="{base_url}", api_key="{story.cast.key[:12]}…")')
    with OpenAI(base_url=base_url, api_key=story.cast.key, timeout=120) as openai:
        names = {model.id for model in openai.models.list()}
        story.stage.check({BASE_MODEL, adapter} <= names, f"models.list shows {', '.join(sorted(names))}")
        for question, knows in QUESTIONS.items():
            answers = {model: _ask(openai, model, question) for model in (BASE_MODEL, adapter)}
            story.stage.side_by_side(question, answers)
            story.stage.check(knows in answers[adapter], f"the adapter knows: {knows}")
            story.stage.check(knows not in answers[BASE_MODEL], "the base model does not")
        _stream(story, openai, adapter)


def _messages(question: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": question}]


def _ask(openai: OpenAI, model: str, question: str) -> str:
    answer = openai.chat.completions.create(
        model=model, messages=_messages(question), max_tokens=TOKENS_MAX, temperature=0
    )
    return answer.choices[0].message.content or ""


def _stream(story: Story, openai: OpenAI, adapter: str) -> None:
    console = story.stage.console
    for model in (BASE_MODEL, adapter):
        stream = openai.chat.completions.create(
            model=model, messages=_messages(STREAMED), max_tokens=TOKENS_MAX, temperature=0, stream=True
        )
        console.print(f"\n  [bold]{STREAMED}[/bold] [cyan]{model}[/cyan], streamed: ", end="")
        pieces: list[str] = []
        usages = 0
        for chunk in stream:
            usages += chunk.usage is not None
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                console.print(pieces[-1], end="", markup=False, highlight=False)
        console.print()
        said = "".join(pieces)
        story.stage.check(len(pieces) > 2 and said.strip(), f"{model} streamed {len(pieces)} pieces")
        story.stage.check(usages == 0, "it did not ask for usage and was shown none")
    story.stage.check(STREAMED_KNOWS in said, f"the adapter knows: {STREAMED_KNOWS}")
