"""The database: engine, schema, migrations, group commit; decisions, outcomes, feedback."""

from optllm_router.store.database import Database
from optllm_router.store.records import LabelledAnswer, RecordedUsage, Records

__all__ = ["Database", "LabelledAnswer", "RecordedUsage", "Records"]
