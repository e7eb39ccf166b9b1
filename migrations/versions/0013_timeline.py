"""On which timeline of the server versions were drawn: after a failover they may be drawn again.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "outbox_control",
        sa.Column(
            "timeline",
            sa.Text(),
            comment="of the server as the epoch began: another may lack what was written last",
        ),
    )


def downgrade() -> None:
    op.drop_column("outbox_control", "timeline")
