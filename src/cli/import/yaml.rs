//! YAML as a tree that knows its lines: whatever is refused later is refused with the line it stands in.
//!
//! Aliases are copied where they stand and merge keys are merged. The whole tree is bounded, so a file that repeats its
//! aliases without end is refused before it fills the memory.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::super::value::{Checked, shown, wrong};
use crate::api::types::Error;
use crate::model::error::Code;

/// Values in one file at most, with the copies that aliases make.
const MOST_NODES: usize = 100_000;
/// Bytes of text in one file at most, with those copies.
const MOST_BYTES: usize = 16 << 20;
/// How deep values may be nested.
const DEEPEST: usize = 64;
/// Key that takes in the entries of other mappings.
const MERGE: &str = "<<";

/// A value and the line it begins in, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A text. One without quotes (`plain`) may be meant as a number, a switch or nothing at all.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// An entry of a mapping; no two of one mapping have the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

/// An error of the file, in that line.
pub(super) fn at(line: usize, message: impl std::fmt::Display) -> Error {
    wrong(Code::Compose, format!("line {line}: {message}"))
}

impl Node {
    /// What it is, for a person.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "nothing",
            Value::Scalar { .. } => "a value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The entries of a mapping; nothing is a mapping without entries. `what` is what it says.
    pub fn entries(&self, what: &str) -> Checked<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Ok(entries),
            _ if self.is_null() => Ok(&[]),
            _ => Err(self.other_than(what, "a mapping (KEY: VALUE)")),
        }
    }

    /// The items of a list; nothing is a list without items.
    pub fn items(&self, what: &str) -> Checked<&[Node]> {
        match &self.value {
            Value::List(items) => Ok(items),
            _ if self.is_null() => Ok(&[]),
            _ => Err(self.other_than(what, "a list (- ITEM)")),
        }
    }

    /// The text of a single value as it is written, and whether it is without quotes.
    pub fn scalar(&self, what: &str) -> Checked<(&str, bool)> {
        match &self.value {
            Value::Scalar { text, plain } if !self.is_null() => Ok((text, *plain)),
            _ => Err(self.other_than(what, "a single value")),
        }
    }

    /// The refusal of another kind of value than `wanted`.
    pub fn other_than(&self, what: &str, wanted: &str) -> Error {
        at(
            self.line,
            format!("{what} is {}: {wanted} is expected", self.kind()),
        )
    }

    /// How many values it has in all, and itself; and how many bytes of text.
    fn size(&self) -> (usize, usize) {
        let add = |(n, bytes): (usize, usize), (more, text): (usize, usize)| {
            (n.saturating_add(more), bytes.saturating_add(text))
        };
        match &self.value {
            Value::Scalar { text, .. } => (1, text.len()),
            Value::List(items) => items.iter().map(Node::size).fold((1, 0), add),
            Value::Map(entries) => entries
                .iter()
                .map(|e| add(e.value.size(), (0, e.key.len())))
                .fold((1, 0), add),
        }
    }
}

/// A list or mapping whose end is not read yet.
struct Open {
    anchor: usize,
    node: Node,
    /// Of a mapping: the key whose value comes next.
    key: Option<(String, usize)>,
}

/// The tree as far as it is read.
#[derive(Default)]
struct Tree {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    bytes: usize,
    whole: Option<Node>,
}

/// Reads a file of one document.
pub(super) fn read(text: &str) -> Checked<Node> {
    let mut tree = Tree::default();
    let mut documents = 0usize;
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|e| at(e.marker().line().max(1), format!("no YAML: {}", e.info())))?;
        if let Event::DocumentStart(_) = event {
            documents = documents.saturating_add(1);
            if documents > 1 {
                return Err(at(
                    span.start.line(),
                    "a second document begins: one is read",
                ));
            }
        }
        tree.take(event, &span)?;
    }
    tree.whole
        .ok_or_else(|| wrong(Code::Compose, "the file has nothing in it"))
}

impl Tree {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Checked<()> {
        let line = span.start.line();
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                is_core(tag.as_deref(), line)?;
                let value = Value::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                self.put(Node { line, value }, anchor)
            }
            Event::Alias(anchor) => {
                let copy = self.anchors.get(&anchor).cloned();
                let copy = copy.ok_or_else(|| at(line, "an alias of what it is a part of"))?;
                self.weigh(&copy)?;
                self.put(copy, 0)
            }
            Event::SequenceStart(anchor, tag) => {
                self.begin(Value::List(vec![]), anchor, tag.as_deref(), line)
            }
            Event::MappingStart(anchor, tag) => {
                self.begin(Value::Map(vec![]), anchor, tag.as_deref(), line)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(done) => {
                    let mut node = done.node;
                    if let Value::Map(entries) = &mut node.value {
                        merge(entries)?;
                    }
                    self.put(node, done.anchor)
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Counts a copy before it is made: what an alias repeats takes memory each time.
    fn weigh(&mut self, copied: &Node) -> Checked<()> {
        let (nodes, bytes) = copied.size();
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
        let most = match (self.nodes > MOST_NODES, self.bytes > MOST_BYTES) {
            (true, _) => format!("{MOST_NODES} values"),
            (_, true) => format!("{MOST_BYTES} bytes"),
            _ => return Ok(()),
        };
        Err(at(
            copied.line,
            format!("more than {most} with the copies that aliases make"),
        ))
    }

    fn begin(
        &mut self,
        value: Value,
        anchor: usize,
        tag: Option<&Tag>,
        line: usize,
    ) -> Checked<()> {
        is_core(tag, line)?;
        if self.open.len() >= DEEPEST {
            return Err(at(
                line,
                format!("more than {DEEPEST} values in one another"),
            ));
        }
        self.open.push(Open {
            anchor,
            node: Node { line, value },
            key: None,
        });
        Ok(())
    }

    /// Puts a value that is read whole into what is open.
    fn put(&mut self, node: Node, anchor: usize) -> Checked<()> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > MOST_NODES {
            return Err(at(node.line, format!("more than {MOST_NODES} values")));
        }
        if anchor != 0 {
            self.weigh(&node)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.whole = Some(node);
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some((key, line))) => {
                if entries.iter().any(|e| e.key == key) && key != MERGE {
                    return Err(at(line, format!("{} stands there twice", shown(&key))));
                }
                entries.push(Entry {
                    key,
                    line,
                    value: node,
                });
            }
            (Value::Map(_), None) => match node.value {
                Value::Scalar { text, .. } => open.key = Some((text, node.line)),
                _ => return Err(at(node.line, "a key is a single value")),
            },
            (Value::Scalar { .. }, _) => {}
        }
        Ok(())
    }
}

/// Takes the entries of merge keys in: those that the mapping has not itself.
fn merge(entries: &mut Vec<Entry>) -> Checked<()> {
    while let Some(place) = entries.iter().position(|e| e.key == MERGE) {
        let from = entries.remove(place);
        let sources = match from.value.value {
            Value::List(items) => items,
            _ => vec![from.value],
        };
        for source in sources {
            let Value::Map(more) = source.value else {
                return Err(source.other_than(MERGE, "a mapping"));
            };
            for entry in more {
                if !entries.iter().any(|e| e.key == entry.key) {
                    entries.push(entry);
                }
            }
        }
    }
    Ok(())
}

/// Refuses tags that only another program knows (`!reset`, `!override`).
fn is_core(tag: Option<&Tag>, line: usize) -> Checked<()> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => Err(at(
            line,
            format!("the tag {}{} is not read", tag.handle, tag.suffix),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        read(text).unwrap_err().message
    }

    #[test]
    fn what_aliases_copy_is_counted_before_it_is_copied() {
        let long = "x".repeat(900_000);
        let bomb = format!("a: &a \"{long}\"\nb: [{}]\n", "*a, ".repeat(5000));
        assert!(refused(&bomb).contains("bytes with the copies"));
        let mut nested = format!("a: &a0 [{}]\n", "1, ".repeat(1000));
        for n in 1..60 {
            let ten = format!("*a{}, ", n - 1).repeat(10);
            nested += &format!("b{n}: &a{n} [{ten}]\n");
        }
        assert!(refused(&nested).contains("values with the copies"));
    }

    #[test]
    fn a_tree_knows_its_lines_its_quotes_and_what_it_merges() {
        let text = "x: &base {a: 1, b: \"2\"}\ny:\n  <<: *base\n  b: 3\nz: [~, *base]\n";
        let whole = read(text).unwrap();
        let entries = whole.entries("the file").unwrap();
        let y = entries[1].value.entries("y").unwrap();
        let said: Vec<_> = y
            .iter()
            .map(|e| (e.key.as_str(), e.line, e.value.scalar("it").unwrap()))
            .collect();
        assert_eq!(
            said,
            [("b", 4, ("3", true)), ("a", 1, ("1", true))],
            "its own entry stands before that of the base"
        );
        assert_eq!(entries[2].line, 5);
        let z = entries[2].value.items("z").unwrap();
        assert!(z[0].is_null() && z[1] == entries[0].value);
        let b = &entries[0].value.entries("x").unwrap()[1];
        assert_eq!(b.value.scalar("b"), Ok(("2", false)));
    }

    #[test]
    fn what_is_no_tree_is_refused_with_its_line() {
        for (text, says) in [
            ("", "nothing in it"),
            ("a: 1\nb: [\n", "line"),
            ("a: 1\n\na: 2\n", "line 3: \"a\" stands there twice"),
            ("? [a]\n: 1\n", "line 1: a key is a single value"),
            ("a: !reset x\n", "line 1: the tag !reset is not read"),
            ("a: 1\n---\nb: 2\n", "a second document begins"),
            ("a: *b\n", "line 1: no YAML"),
            ("<<: 3\n", "line 1: << is a value"),
        ] {
            let message = refused(text);
            assert!(message.contains(says), "{text:?}: {message}");
        }
        let deep = "[".repeat(70) + &"]".repeat(70);
        assert!(refused(&deep).contains("more than 64 values in one another"));
    }

    #[test]
    fn aliases_of_aliases_are_refused_before_they_fill_the_memory() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..9 {
            let former = n - 1;
            let ten = vec![format!("*a{former}"); 10].join(", ");
            text += &format!("a{n}: &a{n} [{ten}]\n");
        }
        assert!(refused(&text).contains("more than 100000 values"));
    }
}
