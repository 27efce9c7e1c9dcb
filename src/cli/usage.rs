//! What the argument parser refuses, said the way every other error is.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind as ClapKind};
use clap::{CommandFactory, FromArgMatches};

use super::value::wrong;
use super::{Cli, examples, output, print};
use crate::api::types::Error;
use crate::model::error::Code;

/// Verbs that end something. Who mistyped another verb is not led to one of these.
const ENDING: &[&str] = &[
    "leave",
    "destroy",
    "down",
    "detach",
    "cleanup",
    "integration remove",
    "invite revoke",
    "member deny",
    "member remove",
    "lease rm",
    "dns rm",
    "dns release",
    "map rm",
    "peer disconnect",
];

/// Verbs of the contract that later versions have. Who types one has made no mistake, and is told so.
const LATER: &[&str] = &[
    "advertise",
    "authority",
    "bundle",
    "completion",
    "completions",
    "events",
    "exit",
    "grant",
    "identity",
    "listen",
    "log",
    "man",
    "member admission",
    "member rename",
    "peer best",
    "peer block",
    "peer score",
    "peer unblock",
    "publish",
    "query",
    "remote",
    "route",
    "send",
    "subnet export",
    "subnet import",
    "subscribe",
    "swarm",
    "task",
    "trace",
    "unadvertise",
    "workload quarantine",
    "workload release",
];

/// Other words for what a noun's verb does: people bring them from elsewhere. The help does not show them.
const ALSO: [(&str, &[&str]); 3] = [
    ("ls", &["list"]),
    ("rm", &["remove", "delete"]),
    ("remove", &["rm", "delete"]),
];

/// What is understood: the verbs, and other words for them.
pub(super) fn words() -> clap::Command {
    let named = |verb: clap::Command| {
        let also = ALSO.iter().find(|(name, _)| *name == verb.get_name());
        also.map_or(verb.clone(), |(_, others)| verb.aliases(*others))
    };
    Cli::command().mut_subcommands(|noun| noun.mut_subcommands(named))
}

/// The grammar, with examples in the help of every verb, and what is said of a subnet that may be left out.
fn grammar() -> clap::Command {
    let mut grammar = words();
    for (verb, lines) in examples::EXAMPLES {
        let told = |leaf: clap::Command| explained(leaf, verb, lines);
        grammar = match verb.split_once(' ') {
            Some((noun, verb)) => grammar.mut_subcommand(noun, |n| n.mut_subcommand(verb, told)),
            None => grammar.mut_subcommand(verb, told),
        };
    }
    grammar
}

/// A verb whose help says how it is used, whether its subnet may be left out, and what may be typed.
fn explained(leaf: clap::Command, verb: &str, lines: &[&str]) -> clap::Command {
    let first = leaf.get_positionals().next();
    let is_subnet = first.is_some_and(|a| a.get_id() == "subnet" && a.is_required_set());
    let may = is_subnet && !ends_something(verb);
    let usage = is_subnet.then(|| synopsis(&leaf, verb, may));
    // In the order they stand in: mut_arg would put it last.
    let leaf = leaf.mut_args(|arg| match arg.get_help().map(ToString::to_string) {
        Some(usual) if may && arg.get_id() == "subnet" => arg.help(format!(
            "{usual}; may be left out where this machine has one"
        )),
        _ => arg,
    });
    let leaf = match usage {
        Some(usage) => leaf.override_usage(usage),
        None => leaf,
    };
    // What a verb says at the end of its help stands before its examples.
    let before = leaf
        .get_after_help()
        .map(|said| format!("{said}\n\n"))
        .unwrap_or_default();
    leaf.after_help(format!("{before}Examples:\n  {}", lines.join("\n  ")))
}

/// How a verb is used, with SUBNET first. The parser's own words put one of several (an address or `--cname`) before what
/// stands in front of it, and know nothing of a subnet that may be left out.
fn synopsis(leaf: &clap::Command, verb: &str, may: bool) -> String {
    let rendered = leaf.clone().bin_name(verb).render_usage().to_string();
    let mut words: Vec<&str> = rendered
        .trim_start_matches("Usage: ")
        .trim_start_matches(verb)
        .split_whitespace()
        .filter(|word| *word != "[OPTIONS]")
        .collect();
    let at = words
        .iter()
        .position(|word| *word == "<SUBNET>")
        .unwrap_or(0);
    let ahead: Vec<&str> = words.drain(..at).collect();
    if let Some(first) = words.first_mut().filter(|_| may) {
        *first = "[SUBNET]";
    }
    let all = ["byway", verb, "[OPTIONS]"]
        .into_iter()
        .chain(words)
        .chain(ahead);
    all.collect::<Vec<_>>().join(" ")
}

/// Reads a line.
pub(super) fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches_mut(&mut grammar().try_get_matches_from(args)?)
}

/// The help of the whole program, without colours.
pub(super) fn help() -> String {
    grammar().render_help().to_string()
}

/// Whether a verb, as it is typed behind `byway`, ends something.
pub(super) fn ends_something(verb: &str) -> bool {
    ENDING.contains(&verb)
}

/// Prints an error that is not the parser's; the exit code.
pub(super) fn refuse(error: &Error, args: &[OsString]) -> u8 {
    let given = |flag: &str| args.iter().take_while(|a| *a != "--").any(|a| a == flag);
    output::error(
        print::Style::of_process(given("--no-color")),
        given("--json"),
        error,
    );
    error.kind.exit_code()
}

/// Prints help, the version or the error; the exit code.
pub(super) fn report(refused: &clap::Error, args: &[OsString]) -> u8 {
    let error = if matches!(
        refused.kind(),
        ClapKind::DisplayHelp | ClapKind::DisplayVersion
    ) {
        match output::write(&refused.render().to_string()) {
            Ok(_) => return 0,
            Err(error) => error,
        }
    } else {
        error(refused)
    };
    refuse(&error, args)
}

/// The error of a value is its own; the parser's are `E-USAGE`.
fn error(refused: &clap::Error) -> Error {
    if let Some(own) = std::error::Error::source(refused).and_then(|e| e.downcast_ref::<Error>()) {
        return of_argument(refused, own);
    }
    let usage = usage_line(refused);
    let command: Vec<&str> = usage
        .split(' ')
        .take_while(|w| !w.starts_with(['<', '[', '-']))
        .collect();
    if refused.kind() == ClapKind::DisplayHelpOnMissingArgumentOrSubcommand
        || refused.kind() == ClapKind::MissingSubcommand
    {
        return wrong(Code::Usage, "a verb is missing")
            .hint(format!("{} --help", command.join(" ")));
    }
    if refused.kind() == ClapKind::InvalidSubcommand {
        return unknown_verb(refused, &command);
    }
    let text = refused.render().to_string();
    let message: Vec<&str> = text
        .strip_prefix("error: ")
        .unwrap_or(&text)
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let hint = if usage.is_empty() {
        "byway --help".to_owned()
    } else {
        usage
    };
    wrong(Code::Usage, message.join(" ")).hint(hint)
}

/// The error of a value, with the argument that it was given for.
fn of_argument(refused: &clap::Error, own: &Error) -> Error {
    let argument = refused
        .get(ContextKind::InvalidArg)
        .map(ToString::to_string)
        .unwrap_or_default();
    let message = match argument.split_whitespace().next() {
        Some(argument) => format!("{argument}: {}", own.message),
        None => own.message.clone(),
    };
    Error {
        message,
        ..own.clone()
    }
}

/// How the command that was refused is used: one line, without `Usage: `.
fn usage_line(refused: &clap::Error) -> String {
    let usage = match refused.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(text)) => text.to_string(),
        // Where the whole help is the error, its usage is a line of it.
        _ => refused
            .render()
            .to_string()
            .lines()
            .find(|line| line.starts_with("Usage: "))
            .unwrap_or_default()
            .to_owned(),
    };
    usage
        .lines()
        .next()
        .unwrap_or_default()
        .trim_start_matches("Usage: ")
        .to_owned()
}

/// A word where a verb is expected: one of a later version, one close to a verb that does no harm, or any other.
fn unknown_verb(refused: &clap::Error, command: &[&str]) -> Error {
    let above = if command.is_empty() {
        "byway".to_owned()
    } else {
        command.join(" ")
    };
    let path = |verb: &str| {
        let noun = above.strip_prefix("byway").unwrap_or_default().trim_start();
        if noun.is_empty() {
            verb.to_owned()
        } else {
            format!("{noun} {verb}")
        }
    };
    let word = refused
        .get(ContextKind::InvalidSubcommand)
        .map(ToString::to_string)
        .unwrap_or_default();
    if LATER.contains(&path(&word).as_str()) {
        let message = format!(
            "this version ({}) has no \"{above} {word}\" yet",
            env!("CARGO_PKG_VERSION")
        );
        return wrong(Code::NotYet, message).hint(format!("{above} --help"));
    }
    let next = nearest(&above, &word).filter(|verb| !ends_something(&path(verb)));
    let next = next.unwrap_or_else(|| "--help".to_owned());
    wrong(Code::Usage, format!("unrecognized subcommand '{word}'")).hint(format!("{above} {next}"))
}

/// The verb behind `above` that was meant by `word`, as far as that can be told. Where two are as near, it is the one that
/// ends something: who proposes nothing of the kind then proposes nothing, for anything else would be a worse guess.
fn nearest(above: &str, word: &str) -> Option<String> {
    let grammar = grammar();
    let mut command = &grammar;
    for noun in above.split(' ').skip(1) {
        command = command.find_subcommand(noun)?;
    }
    let noun = above.split(' ').skip(1).collect::<Vec<_>>().join(" ");
    let keeps =
        |verb: &clap::Command| !ends_something(format!("{noun} {}", verb.get_name()).trim_start());
    let far = |verb: &clap::Command| {
        let names = std::iter::once(verb.get_name()).chain(verb.get_all_aliases());
        names.filter_map(|name| distance(name, word)).min()
    };
    let near = command
        .get_subcommands()
        .filter_map(|verb| Some((far(verb)?, keeps(verb), verb)));
    let (_, _, verb) = near.min_by_key(|(far, keeps, _)| (*far, *keeps))?;
    let name = verb.get_name().to_owned();
    // A noun alone does nothing.
    match verb.has_subcommands() {
        true if verb.find_subcommand("ls").is_some() => Some(name + " ls"),
        true => Some(name + " --help"),
        false => Some(name),
    }
}

/// How many letters `word` is from `verb`: none where it is too far to be meant. A letter that is missing, too many, another
/// one, or changed places with the next counts one.
fn distance(verb: &str, word: &str) -> Option<usize> {
    let short: String = word.chars().take(64).collect();
    let far = strsim::osa_distance(verb, &short);
    (far <= if verb.chars().count() < 5 { 1 } else { 2 }).then_some(far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_is_used_in_the_order_it_is_typed_and_what_may_be_left_out_is_in_brackets() {
        for (verb, usage) in [
            (
                "dns add",
                "byway dns add [OPTIONS] [SUBNET] <NAME> <ADDRESS|--cname <NAME>|--txt <TEXT>|--srv <P W PORT TARGET>>",
            ),
            // Verbs that end something guess no subnet.
            ("dns rm", "byway dns rm [OPTIONS] <SUBNET> <NAME> [TYPE]"),
            ("lease add", "byway lease add [OPTIONS] [SUBNET] <PREFIX>"),
            (
                "lease import",
                "byway lease import [OPTIONS] [SUBNET] <FILE>",
            ),
            (
                "invite revoke",
                "byway invite revoke [OPTIONS] [SUBNET] <INVITE>",
            ),
            ("member ls", "byway member ls [OPTIONS] [SUBNET]"),
            (
                "member label",
                "byway member label [OPTIONS] [SUBNET] <MEMBER> <K=V>...",
            ),
            ("create", "byway create [OPTIONS] <NAME>"),
        ] {
            let words = ["byway"]
                .into_iter()
                .chain(verb.split(' '))
                .chain(["--help"]);
            let help = grammar()
                .try_get_matches_from(words)
                .unwrap_err()
                .to_string();
            let line = help.lines().find_map(|l| l.strip_prefix("Usage: "));
            assert_eq!(line, Some(usage), "{verb}");
        }
        let hint = refused("dns add lab web").unwrap().hint;
        assert!(
            hint.starts_with("byway dns add [OPTIONS] [SUBNET] <NAME> <ADDRESS|"),
            "{hint}"
        );
    }

    /// Every verb, as it is typed behind `byway`.
    fn verbs() -> Vec<String> {
        let nouns = Cli::command();
        let under = |noun: &clap::Command| -> Vec<String> {
            let name = noun.get_name();
            let own: Vec<String> = noun
                .get_subcommands()
                .map(|verb| format!("{name} {}", verb.get_name()))
                .collect();
            if own.is_empty() {
                vec![name.to_owned()]
            } else {
                [vec![name.to_owned()], own].concat()
            }
        };
        nouns.get_subcommands().flat_map(under).collect()
    }

    fn refused(words: &str) -> Option<Error> {
        let words = std::iter::once("byway").chain(words.split(' '));
        grammar()
            .try_get_matches_from(words)
            .err()
            .map(|e| error(&e))
    }

    /// Words close to `verb`: one letter missing, doubled, other, or changed places with the next.
    fn mistyped(verb: &str) -> Vec<String> {
        let letters: Vec<char> = verb.chars().collect();
        let with = |at: usize, new: &[char]| -> String {
            letters[..at]
                .iter()
                .chain(new)
                .chain(letters.get(at + 1..).unwrap_or_default())
                .collect()
        };
        let mut words: Vec<String> = (0..letters.len())
            .flat_map(|at| [with(at, &[]), with(at, &[letters[at]; 2]), with(at, &['x'])])
            .filter(|word| !word.is_empty())
            .collect();
        for at in 1..letters.len() {
            let mut swapped = letters.clone();
            swapped.swap(at - 1, at);
            words.push(swapped.into_iter().collect());
        }
        words
    }

    #[test]
    fn no_mistyped_verb_is_led_to_one_that_ends_something() {
        let (all, mut led) = (verbs(), 0);
        for verb in &all {
            let (noun, last) = verb
                .rsplit_once(' ')
                .map_or(("", verb.as_str()), |(noun, last)| (noun, last));
            for word in mistyped(last) {
                let typed = format!("{noun} {word}").trim_start().to_owned();
                let Some(error) = refused(&typed).filter(|e| e.message.starts_with("unrecognized"))
                else {
                    continue;
                };
                let next = error.hint.strip_prefix("byway ").unwrap();
                assert!(!ENDING.contains(&next), "{typed} leads to {next}");
                led += usize::from(all.iter().any(|verb| verb == next));
            }
        }
        assert!(
            led > 200,
            "only {led} mistyped verbs were led to the one that was meant"
        );
    }

    #[test]
    fn a_mistyped_verb_leads_to_the_nearest_one_and_to_none_that_is_far() {
        for (typed, hint) in [
            ("creat", "byway create"),
            ("members", "byway member ls"),
            ("subnets", "byway subnet ls"),
            ("staus", "byway status"),
            ("configs", "byway config --help"),
            ("expose", "byway --help"),
            ("remove", "byway --help"),
            ("invite", "byway invite --help"),
            ("invite lst", "byway invite ls"),
            ("member aprove lab x", "byway member approve"),
            // One letter from the other word for what ends something.
            ("map remov", "byway map --help"),
            ("map delet", "byway map --help"),
        ] {
            assert_eq!(refused(typed).unwrap().hint, hint, "{typed}");
        }
    }

    #[test]
    fn other_words_for_a_verb_are_understood_as_it() {
        for (typed, verb) in [
            ("map remove lab web", "map rm"),
            ("dns delete lab a", "dns rm"),
            ("member rm lab x", "member remove"),
            ("member list lab", "member ls"),
            ("subnet list", "subnet ls"),
        ] {
            let words = std::iter::once("byway").chain(typed.split(' '));
            let mut matches = grammar()
                .try_get_matches_from(words)
                .unwrap_or_else(|e| panic!("{typed}: {e}"));
            let mut found = vec![];
            while let Some((name, below)) = matches.remove_subcommand() {
                (matches, found) = (below, [found, vec![name]].concat());
            }
            assert_eq!(found.join(" "), verb, "{typed}");
        }
    }

    #[test]
    fn every_verb_has_three_examples_that_can_be_typed() {
        // Hidden are those that no person types.
        let ends = |verb: &&String| {
            grammar()
                .find_subcommand(verb)
                .is_none_or(|c| !c.has_subcommands() && !c.is_hide_set())
        };
        for verb in verbs().iter().filter(ends) {
            let (_, lines) = examples::EXAMPLES
                .iter()
                .find(|(v, _)| v == verb)
                .unwrap_or_else(|| panic!("{verb}"));
            for line in lines {
                // What stands before the program is for the shell.
                let line = line.get(line.find("byway").unwrap()..).unwrap();
                let words: Vec<OsString> =
                    shell_words(line).into_iter().map(OsString::from).collect();
                let read = parse(&super::super::left_out::moved(words));
                assert!(read.is_ok(), "{line}: {}", read.unwrap_err());
                assert!(
                    line.contains(&verb.replace("byway ", "")),
                    "{line} is no example of {verb}"
                );
            }
        }
        assert_eq!(
            examples::EXAMPLES.len(),
            verbs().iter().filter(ends).count()
        );
    }

    /// The words of a line; a pair of quotes holds one together.
    fn shell_words(line: &str) -> Vec<String> {
        let each = line
            .split('"')
            .enumerate()
            .flat_map(|(i, part)| match i % 2 {
                0 => part.split_whitespace().map(str::to_owned).collect(),
                _ => vec![part.to_owned()],
            });
        each.collect()
    }

    #[test]
    fn verbs_that_end_something_and_those_of_later_versions_are_named_truly() {
        let all = verbs();
        ENDING
            .iter()
            .for_each(|verb| assert!(all.iter().any(|v| v == verb), "there is no {verb}"));
        for verb in LATER {
            assert!(!all.iter().any(|v| v == verb), "{verb} is here already");
            let error = refused(&format!("{verb} lab")).unwrap();
            assert_eq!(error.code, "E-NOT-YET", "{verb}: {}", error.message);
        }
    }
}
