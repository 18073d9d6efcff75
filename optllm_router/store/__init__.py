"""The database: engine, schema, migrations, group commit; what is kept in it."""

from optllm_router.store.database import Database
from optllm_router.store.keys import AccessKey, AccessKeys
from optllm_router.store.partners import Partner, Partners
from optllm_router.store.records import LabelledAnswer, RecordedUsage, Records
from optllm_router.store.spending import AnsweredCall, Answers, By, GradedAnswer, Spending, Spent

__all__ = [
    "AccessKey",
    "AccessKeys",
    "AnsweredCall",
    "Answers",
    "By",
    "Database",
    "GradedAnswer",
    "LabelledAnswer",
    "Partner",
    "Partners",
    "RecordedUsage",
    "Records",
    "Spending",
    "Spent",
]
