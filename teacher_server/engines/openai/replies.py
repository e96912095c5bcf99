"""A chat completion as OpenAI's API has it: what is read of a server's reply."""

from pydantic import BaseModel, Field


class Token(BaseModel):
    """A token that the model may say, and the natural logarithm of its probability."""

    token: str
    logprob: float


class _Step(BaseModel):
    top_logprobs: list[Token] | None = None


class _LogProbabilities(BaseModel):
    content: list[_Step] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbabilities | None = None


class _Usage(BaseModel):
    completion_tokens: int = 0


class Reply(BaseModel):
    """What is read of a chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        return self.choices[0].message.content or ""

    @property
    def tokens(self) -> int:
        """Generated, as far as the server says."""
        return self.usage.completion_tokens if self.usage else 0

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def first_step(self) -> list[Token]:
        """The most probable first tokens; none where the server does not tell."""
        told = self.choices[0].logprobs
        return (told.content[0].top_logprobs or []) if told and told.content else []
