"""The database: engine, schema, migrations, group commit; what is kept in it."""

from optllm_router.store.database import Database
from optllm_router.store.keys import AccessKey, AccessKeys
from optllm_router.store.records import LabelledAnswer, RecordedUsage, Records

__all__ = ["AccessKey", "AccessKeys", "Database", "LabelledAnswer", "RecordedUsage", "Records"]
