# The names of older releases are importable, from where they were.
# {} -> true

from cog import (  # noqa: F401
    BaseModel,
    BasePredictor,
    BaseRunner,
    CancelationException,
    Coder,
    ConcatenateIterator,
    ExperimentalFeatureWarning,
    FieldInfo,
    File,
    Input,
    Opaque,
    Path,
    Secret,
    URLFile,
    URLPath,
    __version__,
    concurrent,
    current_scope,
    emit_metric,
    streaming,
)
from cog.coder.dataclass_coder import DataclassCoder  # noqa: F401
from cog.coder.json_coder import JsonCoder  # noqa: F401
from cog.coder.pydantic_coder import BaseModelCoder  # noqa: F401
from cog.coder.set_coder import SetCoder  # noqa: F401
from cog.exceptions import CancelationException as second
from cog.server.exceptions import CancelationException as third


class Predictor(BasePredictor):
    def predict(self) -> bool:
        return second is third is CancelationException and not issubclass(second, Exception)
