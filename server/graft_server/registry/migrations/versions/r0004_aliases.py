"""Names for versions that move, such as ``production``, and the history of their moves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("engine_id", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.name"]),
        sa.ForeignKeyConstraint(["engine_id"], ["versions.engine_id"]),
        sa.PrimaryKeyConstraint("adapter", "name"),
    )
    op.create_index(op.f("ix_aliases_engine_id"), "aliases", ["engine_id"], unique=False)
    op.create_table(
        "alias_events",
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(), nullable=False),
        sa.Column("gate", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("adapter", "seq"),
    )


def downgrade() -> None:
    op.drop_table("alias_events")
    op.drop_index(op.f("ix_aliases_engine_id"), table_name="aliases")
    op.drop_table("aliases")
