"""Which server works at a job, and until when it need not be heard of; a job at work without one is anybody's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("server", sa.String(length=32), nullable=True))
    op.add_column("jobs", sa.Column("leased_until", sa.DateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "leased_until")
    op.drop_column("jobs", "server")
