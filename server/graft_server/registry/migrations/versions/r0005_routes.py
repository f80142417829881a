"""Routes to versions by weight, and the history of their changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "routes",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "route_versions",
        sa.Column("route", sa.String(length=64), nullable=False),
        sa.Column("engine_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["engine_id"], ["versions.engine_id"]),
        sa.ForeignKeyConstraint(["route"], ["routes.name"]),
        sa.PrimaryKeyConstraint("route", "engine_id"),
    )
    op.create_index(op.f("ix_route_versions_engine_id"), "route_versions", ["engine_id"], unique=False)
    op.create_table(
        "route_events",
        sa.Column("route", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("route", "seq"),
    )


def downgrade() -> None:
    op.drop_table("route_events")
    op.drop_index(op.f("ix_route_versions_engine_id"), table_name="route_versions")
    op.drop_table("route_versions")
    op.drop_table("routes")
