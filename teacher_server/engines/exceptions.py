"""An exception's message in one line."""


def words_of(error: BaseException) -> str:
    """Returns an exception's message, or else that of its cause, or else the name of its type."""
    each: BaseException | None = error
    while each is not None:
        if words := _own_words(each):
            return words
        each = each.__cause__ or each.__context__
    return type(error).__name__


def _own_words(error: BaseException) -> str:
    if callable(problems := getattr(error, "errors", None)):  # pydantic: its first line only counts them
        text = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in problems())
    else:
        text = str(error)
    return " ".join(text.split())[:500]
