"""Demonstrations of the nodes of a book's tree, made from a summary of the whole book by people."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.analysis.book_rouge import extractive_oracle
from textenv.analysis.book_sources import sentences_of
from textenv.data.book_tasks import BookTask, BookTasks, TokenCounter, as_summary
from textenv.data.book_tree import BETWEEN, Curriculum, Node, TreeSettings, cut_leaves, plan_tree, select_nodes

__all__ = ["NodeDemonstration", "demonstrate"]


@dataclass(frozen=True, slots=True)
class NodeDemonstration:
    """A task of a tree and a summary that a model may learn from.

    Attributes:
        node: Its node.
        task: What is asked.
        summary: The summary, in one line.
    """

    node: Node
    task: BookTask
    summary: str

    def record(self) -> dict[str, str]:
        """Return it as ``textenv sft`` reads it, ``prompt`` and ``completion``, for a model that goes on with texts."""
        return {"prompt": self.task.prompt(), "completion": f" {self.summary}"}


def demonstrate(
    book: str, reference: str, sizes: TreeSettings, tokens: TokenCounter, curriculum: Curriculum = "full tree"
) -> list[NodeDemonstration]:
    """Return demonstrations of the nodes of a book's tree, in the order of the tree's plan.

    Nobody has summarized the passages. What stands in for that is the extractive oracle of what a node reads: its
    sentences that overlap the most with the summary of the whole book. The root's is that summary itself, as far as
    there is room. So demonstrations of passages are copied, and know what the whole says.

    Args:
        book: The text.
        reference: The summary of it.
        sizes: Sizes of the tree.
        tokens: Counts tokens.
        curriculum: Which nodes.
    """
    plan = plan_tree(cut_leaves(book, tokens.count, sizes.leaf_tokens), sizes)
    tasks, found = BookTasks(book, sizes, tokens), []
    for node in select_nodes(plan, curriculum):
        task, limit = tasks.task(node), sizes.limit(node.height)

        def cut(text: str, limit: int = limit) -> str:
            return as_summary(text, limit, tokens)

        sentences = [sentence for text in task.text.split(BETWEEN) for sentence in sentences_of(text)]
        is_root = node == plan[-1]
        summary = cut(reference) if is_root else extractive_oracle(sentences, reference, cut)
        tasks.add(node, summary)
        found.append(NodeDemonstration(node, task, summary))
    return found
