"""A page of a summarized book, on which every sentence of the summary can be followed down to the book."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textenv.analysis.book_sources import Source, Sources
from textenv.analysis.book_summary import Summary
from textenv.web.markup import Markup, fill, join

__all__ = ["book_page"]


def book_page(title: str, model: str, text: str, nodes: Sequence[Summary]) -> str:
    """Return a page that needs no other file and runs nothing.

    Args:
        title: Of the book.
        model: What wrote the summaries.
        text: The book.
        nodes: Its tree, as ``textenv.analysis.book_summary.summarize_book`` returns it.
    """
    return _Page(text, nodes).page(title, model)


class _Page:
    def __init__(self, text: str, nodes: Sequence[Summary]) -> None:
        self.sources = Sources(text, nodes)
        self.nodes = {(node.height, node.index): node for node in nodes}
        self.found = {place: self.sources.of(node) for place, node in self.nodes.items()}
        *below, self.root = nodes
        self.parents = {  # the root has its place at the top
            (node.height - 1, child): node for node in below if node.height for child in range(node.first, node.end)
        }

    def page(self, title: str, model: str) -> str:
        heights = range(self.root.height - 1, -1, -1) if self.root.height else range(1)
        levels = [
            fill(
                _LEVEL,
                name="Passages of the book" if not height else f"Height {height}",
                nodes=join(self._node(node) for node in self.nodes.values() if node.height == height),
            )
            for height in heights
        ]
        root = self.sources.summaries[self.root.height][self.root.index]
        return fill(
            _PAGE,
            title=title,
            model=model,
            leaves=f"{len(self.sources.passages):,}",
            tasks=f"{len(self.nodes):,}",
            height=self.root.height,
            root=join(self._chain(self.root, place, sentence) for place, sentence in enumerate(root))
            or fill("<p><i>The model wrote nothing.</i></p>"),
            parts=self._parts(self.root, "Made of parts {links}."),
            levels=join(levels),
        )

    def _chain(self, node: Summary, place: int, sentence: str) -> Markup:
        """Return a sentence of the root, and below it, folded, where it comes from, down to the book."""
        steps = []
        height, source = node.height, self.found[node.height, node.index][place]
        while source is not None:
            steps.append(self._step(height, source))
            if not height:
                break
            height -= 1
            source = self.found[height, source.child][source.sentence]
        if source is None:
            steps.append(fill("<li><i>No words in common with anything below.</i></li>"))
        return fill(_CHAIN, sentence=sentence.strip(), steps=join(steps))

    def _step(self, height: int, source: Source) -> Markup:
        """Return where a sentence of a height comes from."""
        if height:
            said = self.sources.summaries[height - 1][source.child][source.sentence]
            name = f"{'' if height > 1 else 'summary of '}{_name(height - 1, source.child)}"
            address = f"h{height - 1}-{source.child}-s{source.sentence}"
        else:
            said = self.sources.passages[source.child][source.sentence]
            name, address = _name(0, source.child), f"h0-{source.child}-p{source.sentence}"
        return fill(_STEP, address=address, name=name, share=f"{source.share:.0%}", said=said.strip())

    def _node(self, node: Summary) -> Markup:
        place = node.height, node.index
        sentences = self.sources.summaries[node.height][node.index]
        parent = self.parents.get(place)
        passage = Markup("") if node.height else fill(_PASSAGE, sentences=join(self._passage(node.index)))
        return fill(
            _NODE,
            address=f"h{node.height}-{node.index}",
            name=_name(*place),
            sentences=join(
                self._sentence(node, number, sentence, source)
                for number, (sentence, source) in enumerate(zip(sentences, self.found[place], strict=True))
            ),
            up=fill(' · part of <a href="#{address}">{name}</a>', **_link(parent)) if parent else Markup(""),
            down=self._parts(node, " · made of parts {links}"),
            passage=passage,
        )

    def _parts(self, node: Summary, template: str) -> Markup:
        """Return links to the children of a node in a template; nothing for a leaf."""
        children = [_linked(node.height - 1, child) for child in range(node.first, node.end)]
        return fill(template, links=join(children, ", ")) if node.height else Markup("")

    def _sentence(self, node: Summary, number: int, sentence: str, source: Source | None) -> Markup:
        address = f"h{node.height}-{node.index}-s{number}"
        if source is None:
            return fill('<span id="{address}">{sentence}</span>', address=address, sentence=sentence)
        kind, height = ("s", node.height - 1) if node.height else ("p", 0)
        target = f"h{height}-{source.child}-{kind}{source.sentence}"
        return fill(_LINKED, address=address, target=target, share=f"{source.share:.0%}", sentence=sentence)

    def _passage(self, index: int) -> list[Markup]:
        return [
            fill('<span id="h0-{index}-p{place}">{sentence}</span>', index=index, place=place, sentence=sentence)
            for place, sentence in enumerate(self.sources.passages[index])
        ]


def _name(height: int, index: int) -> str:
    return f"height {height}, part {index + 1}" if height else f"passage {index + 1}"


def _link(node: Summary) -> Mapping[str, str]:
    return {"address": f"h{node.height}-{node.index}", "name": _name(node.height, node.index)}


def _linked(height: int, index: int) -> Markup:
    return fill('<a href="#h{height}-{index}">{number}</a>', height=height, index=index, number=index + 1)


_LEVEL = "<section><h2>{name}</h2>{nodes}</section>"
_CHAIN = "<details><summary>{sentence}</summary><ol>{steps}</ol></details>"
_STEP = '<li><a href="#{address}">{name}</a> <small>{share} of the words</small><br>{said}</li>'
_LINKED = '<a class="from" id="{address}" href="#{target}" title="{share} of the words are there">{sentence}</a>'
_PASSAGE = "<blockquote>{sentences}</blockquote>"
_NODE = """<article id="{address}"><h3>{name}</h3><p>{sentences}</p>{passage}
<footer><a href="#top">summary of the book</a>{up}{down}</footer></article>
"""
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}, summarized</title>
<style>
  :root {{ color-scheme: light dark; --line: #8884; --mark: #ffd54f; --ink: #111; }}
  body {{ max-width: 46rem; margin: 0 auto; padding: 1rem; font: 1rem/1.55 system-ui, sans-serif; }}
  h1, h2, h3 {{ line-height: 1.25; overflow-wrap: anywhere; }}
  h3 {{ margin: 0; font-size: .9rem; color: GrayText; font-weight: 600; }}
  p, li, blockquote, summary {{ overflow-wrap: anywhere; }}
  article {{ border-top: 1px solid var(--line); padding: .9rem 0; scroll-margin-top: 1rem; }}
  article p {{ margin: .3rem 0; }}
  blockquote {{ margin: .6rem 0; padding-left: .8rem; border-left: 3px solid var(--line); white-space: pre-line; }}
  details {{ border-top: 1px solid var(--line); padding: .5rem 0; }}
  summary {{ cursor: pointer; font-size: 1.1rem; }}
  ol {{ margin: .4rem 0; padding-left: 1.6rem; }}
  li {{ margin: .5rem 0; }}
  small, footer {{ color: GrayText; font-size: .85rem; }}
  a.from {{ color: inherit; text-decoration: underline dotted; text-underline-offset: .2em; }}
  :target {{ background: var(--mark); color: var(--ink); }}
  article:target {{ background: none; color: inherit; outline: 2px solid var(--mark); }}
</style>
<h1 id="top">{title}</h1>
<p>{leaves} passages, {tasks} summaries up to height {height}, written by {model}. Open a sentence to follow it down to
the book. Each is linked to the sentence below with which it shares the most words, rare ones counting more: a guess,
and where little is shared the model has used words of its own, or made something up.</p>
{root}
<p>{parts}</p>
{levels}
</html>
"""
