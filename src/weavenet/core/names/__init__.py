"""Which names stand for which addresses: what is registered here, what others published, what is answered."""

from weavenet.core.names.names import Names
from weavenet.core.names.registrations import EXPOSE, EXTERNAL
from weavenet.core.names.spelling import absolute_name, is_below

__all__ = ["EXPOSE", "EXTERNAL", "Names", "absolute_name", "is_below"]
