"""What a model says of the rows that it was given, told apart from what is wrong with the model."""

from __future__ import annotations

#: Those that compute. What they raise of values is about values; what a version's own code raises may be about anything.
LIBRARIES = frozenset(
    {"catboost", "lightgbm", "numpy", "onnxruntime", "pandas", "scipy", "sklearn", "torch", "xgboost"}
)
_KINDS = (ValueError, ArithmeticError, IndexError)  # IndexError: an index that an embedding does not have


class Raised(Exception):
    """The model raised in its process. The text is for the log: class, message and traceback there. `kind` is the class,
    `about_rows` what `about_rows` said there."""

    def __init__(self, text: str, kind: str, about_rows: bool) -> None:
        super().__init__(text)
        self.kind, self.about_rows = kind, about_rows


class Unfit(Exception):
    """Rows of sizes that the signature leaves open, and that are none of the model's."""


def about_rows(error: BaseException) -> bool:
    """Whether a library raised it of the values that it was to compute. Whoever asks again and hears the same may believe it."""
    if isinstance(error, Raised):
        return error.about_rows
    if isinstance(error, Unfit):
        return True
    return (isinstance(error, _KINDS) and _origin(error) in LIBRARIES) or _is_invalid_argument(error)


def kind_of(error: BaseException) -> str:
    """The class of what was raised, in whatever process."""
    cause = error.__cause__ or error
    return cause.kind if isinstance(cause, Raised) else type(cause).__name__


def _origin(error: BaseException) -> str:
    """The top package of the code that raised."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        name, trace = str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_next
    return name.partition(".")[0]


def _is_invalid_argument(error: BaseException) -> bool:
    """ONNX Runtime's word for values, whose class has no base of its own."""
    return type(error).__name__ == "InvalidArgument" and type(error).__module__.startswith("onnxruntime.")
