"""Raw examples, as readers give them: documents are plain `str`, the others have a type each."""

from lm.data.reading.labelled_base import Labelled, Question, Tagged
from lm.data.reading.pairs import Pair

__all__ = ["Labelled", "Pair", "Question", "Tagged"]
