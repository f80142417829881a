"""The version of a task that was published last is found by an index, however many there are."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_versions_task_engine_id", "versions", ["task", "engine_id"], unique=False)
    op.drop_index("ix_versions_task", table_name="versions")


def downgrade() -> None:
    op.create_index("ix_versions_task", "versions", ["task"], unique=False)
    op.drop_index("ix_versions_task_engine_id", table_name="versions")
