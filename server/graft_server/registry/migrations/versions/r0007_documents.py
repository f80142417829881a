"""Documents that callers have the server keep: files, batches, responses, requests of fine-tuning jobs; and versions
that are checkpoints of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "documents",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
    )
    op.create_index("ix_documents_kind_number", "documents", ["kind", "number"], unique=False)
    op.add_column("versions", sa.Column("step", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("versions", "step")
    op.drop_index("ix_documents_kind_number", table_name="documents")
    op.drop_table("documents")
