"""How much a key may ask and an adapter may be asked; those of before have the limits of the server's settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("adapters", sa.Column("limits", sa.JSON(), nullable=True))
    op.add_column("api_keys", sa.Column("limits", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("api_keys", "limits")
    op.drop_column("adapters", "limits")
