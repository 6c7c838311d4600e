# Types of the face. A stub, because an import for types alone would count as one: everything imports
# protoseg, and configuration and service must not reach torch through it (see [tool.importlinter]).
from protoseg.api.commands import adapt as adapt
from protoseg.api.commands import evaluate as evaluate
from protoseg.api.commands import explain as explain
from protoseg.api.commands import export as export
from protoseg.api.commands import novelty as novelty
from protoseg.api.commands import train as train
from protoseg.api.load import load as load
from protoseg.api.model import Model as Model
from protoseg.api.result import Result as Result
from protoseg.api.segmenter import Segmenter as Segmenter
from protoseg.errors import UserError as UserError
from serving.local import Bundle as Bundle

__version__: str
