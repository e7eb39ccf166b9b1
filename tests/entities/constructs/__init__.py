"""The table of mapper constructs: each is noted by sessions, bulk statements and triggers, or refused."""

from tests.entities.constructs.columns import COLUMNS
from tests.entities.constructs.inheritance import INHERITANCE
from tests.entities.constructs.keys import KEYS
from tests.entities.constructs.made import YES, Construct, Made
from tests.entities.constructs.relationships import RELATIONSHIPS

CONSTRUCTS = [*INHERITANCE.found, *COLUMNS.found, *KEYS.found, *RELATIONSHIPS.found]
__all__ = ["CONSTRUCTS", "YES", "Construct", "Made"]
