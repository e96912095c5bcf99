"""The parts of an OpenAI chat completion that are read of a server's reply."""

from pydantic import BaseModel, Field


class Token(BaseModel):
    """A candidate token and its log-probability in nats."""

    token: str
    logprob: float


class _Step(BaseModel):
    logprob: float | None = None
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
    """A chat completion."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        return self.choices[0].message.content or ""

    @property
    def tokens(self) -> int:
        """Number of generated tokens; 0 if the server does not report it."""
        return self.usage.completion_tokens if self.usage else 0

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def least_logprob(self) -> float | None:
        """Log-probability (nats) of the least certain token; None if the server does not report all."""
        logprobs = self.choices[0].logprobs
        steps = [step.logprob for step in (logprobs.content or [])] if logprobs else []
        known = [logprob for logprob in steps if logprob is not None]
        return min(known, default=None) if len(known) == len(steps) else None

    @property
    def first_step(self) -> list[Token]:
        """The most probable first tokens; empty if the server does not report them."""
        logprobs = self.choices[0].logprobs
        return (logprobs.content[0].top_logprobs or []) if logprobs and logprobs.content else []
