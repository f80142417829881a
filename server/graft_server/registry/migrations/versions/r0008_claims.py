"""Which server works at a job and until when it need not be heard of, and what each server is answering just now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("server", sa.String(length=32), nullable=True))
    op.add_column("jobs", sa.Column("leased_until", sa.DateTime(), nullable=True))
    op.create_table(
        "servers",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.Column("in_flight", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("servers")
    op.drop_column("jobs", "leased_until")
    op.drop_column("jobs", "server")
