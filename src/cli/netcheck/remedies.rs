//! Findings of several peers that one remedy mends: it is told once, behind all that it is for.

use crate::api::types::Problem;

/// The most peers that are named behind a finding that holds for all of them.
const NAMED: usize = 16;

/// Findings that are told together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group<'a> {
    /// How grave they are, as [`Problem::severity`].
    pub severity: &'a str,
    /// What is wrong, a line each.
    pub messages: Vec<String>,
    /// What to do about all of them.
    pub help: String,
}

/// Each finding by itself.
pub(super) fn each(findings: &[Problem]) -> Vec<Group<'_>> {
    findings.iter().map(alone).collect()
}

fn alone(found: &Problem) -> Group<'_> {
    Group {
        severity: &found.severity,
        messages: vec![found.message.clone()],
        help: found.help.clone(),
    }
}

/// The findings, those together that one remedy mends: in the order of the first of each. Those about peers of these names
/// are alike when they differ in the name alone.
pub(super) fn grouped<'a>(findings: &'a [Problem], names: &[&'a str]) -> Vec<Group<'a>> {
    let mut groups: Vec<Vec<Told<'a>>> = Vec::new();
    for found in findings {
        let told = Told::of(found, names);
        let same = groups.iter_mut().find(|group| {
            group
                .first()
                .is_some_and(|first| first.is_mended_with(&told))
        });
        match same {
            Some(group) => group.push(told),
            None => groups.push(vec![told]),
        }
    }
    groups.iter().filter_map(|group| together(group)).collect()
}

/// A finding, with what of it stays when the peer's name is taken out.
struct Told<'a> {
    found: &'a Problem,
    name: Option<&'a str>,
    help: Vec<String>,
    message: Vec<String>,
}

impl<'a> Told<'a> {
    fn of(found: &'a Problem, names: &[&'a str]) -> Told<'a> {
        // Whom it is about is named first: `b.lab is relayed because …`.
        let place = |name: &&'a str| match parts(&found.message, name).as_slice() {
            [ahead, _, ..] => Some((ahead.len(), *name)),
            _ => None,
        };
        let name = names.iter().filter_map(place).min().map(|(_, name)| name);
        Told {
            found,
            name,
            help: shape(&found.help, name),
            message: shape(&found.message, name),
        }
    }

    fn is_mended_with(&self, other: &Told<'_>) -> bool {
        self.help == other.help
            && self.name.is_some() == other.name.is_some()
            && self.found.severity == other.found.severity
            && self.found.code == other.found.code
    }
}

/// One group of what one remedy mends.
fn together<'a>(group: &[Told<'a>]) -> Option<Group<'a>> {
    let first = group.first()?;
    if group.len() == 1 {
        return Some(alone(first.found));
    }
    // Messages that differ in the name alone, with the names of the later ones.
    let mut lines: Vec<(&Told<'a>, Vec<&str>)> = Vec::new();
    for told in group {
        match lines
            .iter_mut()
            .find(|(head, _)| head.message == told.message)
        {
            Some((_, others)) => others.extend(told.name),
            None => lines.push((told, Vec::new())),
        }
    }
    let mut messages = Vec::new();
    for (head, others) in lines {
        let message = head.found.message.clone();
        messages.push(match others.as_slice() {
            [] => message,
            others => format!("{message}; the same holds for {}", listed(others)),
        });
    }
    Some(Group {
        severity: &first.found.severity,
        messages,
        help: first.help.join("each of them"),
    })
}

/// `a, b and 3 more`.
fn listed(names: &[&str]) -> String {
    match names.split_at_checked(NAMED) {
        Some((shown, more)) if !more.is_empty() => {
            format!("{} and {} more", shown.join(", "), more.len())
        }
        _ => names.join(", "),
    }
}

/// The text around a name; the whole text where there is none.
fn shape(text: &str, name: Option<&str>) -> Vec<String> {
    match name {
        Some(name) => parts(text, name),
        None => vec![text.to_owned()],
    }
}

/// The text before, between and behind a name where it stands as a word of its own.
fn parts(text: &str, name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text;
    let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    while let Some((before, after)) = rest.split_once(name).filter(|_| !name.is_empty()) {
        let (part, last) = (before, parts.last_mut());
        let Some(last) = last else { break };
        last.push_str(part);
        let ends = last
            .chars()
            .next_back()
            .is_none_or(|c| !is_part(c) && c != '.');
        let mut ahead = after.chars();
        let begins = match ahead.next() {
            // The end of a sentence, and no longer name.
            Some('.') => ahead.next().is_none_or(|c| !is_part(c)),
            next => next.is_none_or(|c| !is_part(c)),
        };
        if ends && begins {
            parts.push(String::new());
        } else {
            last.push_str(name);
        }
        rest = after;
    }
    if let Some(last) = parts.last_mut() {
        last.push_str(rest);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: &str, message: &str, help: &str) -> Problem {
        Problem {
            code: code.into(),
            severity: "warning".into(),
            message: message.into(),
            help: help.into(),
        }
    }

    fn told(findings: &[Problem], names: &[&str]) -> Vec<(Vec<String>, String)> {
        let groups = grouped(findings, names).into_iter();
        groups.map(|group| (group.messages, group.help)).collect()
    }

    #[test]
    fn one_trouble_of_several_peers_has_one_line_with_their_names_and_one_remedy() {
        let of = |name: &str| {
            problem(
                "E-RELAYED",
                &format!(
                    "{name} is relayed because {name} answers no datagram at any of its addresses"
                ),
                &format!("let the port through the firewall at {name} or here"),
            )
        };
        let symmetric = problem("E-NAT-SYMMETRIC", "the NAT is symmetric", "forward a port");
        let found = [of("b.lab"), symmetric, of("c.lab"), of("d.lab")];
        assert_eq!(
            told(&found, &["b.lab", "c.lab", "d.lab"]),
            [
                (
                    vec![
                        "b.lab is relayed because b.lab answers no datagram at any of its addresses; the same holds for c.lab, d.lab"
                            .to_owned()
                    ],
                    "let the port through the firewall at each of them or here".to_owned()
                ),
                (
                    vec!["the NAT is symmetric".to_owned()],
                    "forward a port".to_owned()
                ),
            ]
        );
    }

    #[test]
    fn where_each_has_a_cause_of_its_own_every_cause_is_told_before_the_remedy() {
        let of = |name: &str, at: &str| {
            problem(
                "E-NOT-REACHED",
                &format!("{name} is offline: {name} was not reached at {at}"),
                &format!("see that byway runs at {name} and that port 4100 is let through"),
            )
        };
        let found = [of("b.lab", "10.0.0.2:4100"), of("c.lab", "10.0.0.3:4100")];
        let [(messages, help)] = told(&found, &["b.lab", "c.lab"]).try_into().unwrap();
        assert_eq!(
            messages,
            [
                "b.lab is offline: b.lab was not reached at 10.0.0.2:4100",
                "c.lab is offline: c.lab was not reached at 10.0.0.3:4100"
            ]
        );
        assert_eq!(
            help,
            "see that byway runs at each of them and that port 4100 is let through"
        );
    }

    #[test]
    fn a_finding_that_is_alone_or_graver_or_of_another_kind_stays_as_it_is() {
        let b = problem("E-RELAYED", "b is relayed", "open a port at b");
        let c = problem("E-RELAYED", "c is relayed", "open a port at c");
        let grave = Problem {
            severity: "error".into(),
            ..c.clone()
        };
        let other = Problem {
            code: "E-NOT-REACHED".into(),
            ..c.clone()
        };
        let plain = |all: &[&Problem]| -> Vec<(Vec<String>, String)> {
            let of = |p: &&Problem| (vec![p.message.clone()], p.help.clone());
            all.iter().map(of).collect()
        };
        assert_eq!(told(std::slice::from_ref(&b), &["b", "c"]), plain(&[&b]));
        for odd in [grave, other] {
            let found = [b.clone(), odd.clone()];
            assert_eq!(told(&found, &["b", "c"]), plain(&[&b, &odd]));
        }
    }

    #[test]
    fn a_name_counts_where_it_is_a_word_of_its_own() {
        assert_eq!(
            parts("b is at b.lab, ab-b; b.", "b"),
            ["", " is at b.lab, ab-b; ", "."]
        );
        assert_eq!(parts("take b's out", "b"), ["take ", "'s out"]);
        assert_eq!(
            parts("b.lab.internal b.lab", "b.lab"),
            ["b.lab.internal ", ""]
        );
    }

    #[test]
    fn of_very_many_peers_some_are_named_and_all_are_counted() {
        let names: Vec<String> = (0..100).map(|n| format!("p{n:03}")).collect();
        let of = |name: &String| problem("E-RELAYED", &format!("{name} is relayed"), "open a port");
        let found: Vec<Problem> = names.iter().map(of).collect();
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let [(messages, _)] = told(&found, &known).try_into().unwrap();
        let [line] = messages.try_into().unwrap();
        assert!(line.ends_with("p016 and 83 more"), "{line}");
    }
}
