//! SUBNET where it is left out, or stands behind `--subnet`: the line is read with SUBNET in its place.
//!
//! Where a line can be read both ways, what names a subnet of this machine is one. Verbs that end something never guess.

use std::ffi::OsString;

use super::value::wrong;
use super::{Cli, Context, blocking, usage};
use crate::api::client::Client;
use crate::api::types::{
    Error, ErrorKind, Request, Response, SubnetInfo, SubnetState, default_socket,
};
use crate::model::error::Code;
use crate::model::find::{Miss, Named, find};

/// Where SUBNET stands in a line.
struct Place {
    /// The verb, as it is typed behind `byway`.
    verb: String,
    /// What stands before it.
    at: usize,
    /// What the verb calls its first argument.
    argument: String,
    required: bool,
}

fn place(args: &[OsString]) -> Option<Place> {
    let root = usage::words();
    let (mut command, mut words) = (&root, Vec::new());
    let mut rest = args.iter().enumerate().skip(1);
    let mut at = 0;
    while command.has_subcommands() {
        let (index, arg) = rest.next()?;
        match arg.to_str()? {
            "--" => return None,
            // The one global option that has a value.
            "--socket" => drop(rest.next()),
            option if option.starts_with('-') => {}
            word => {
                command = command.find_subcommand(word)?;
                // Another word for a verb that ends something ends it no less.
                words.push(command.get_name());
                at = index.saturating_add(1);
            }
        }
    }
    let first = command.get_positionals().next()?;
    let (argument, required) = (first.get_id().to_string(), first.is_required_set());
    Some(Place {
        verb: words.join(" "),
        at,
        argument,
        required,
    })
}

fn with(args: &[OsString], at: usize, subnet: &str) -> Vec<OsString> {
    let (before, behind) = args.split_at(at.min(args.len()));
    before
        .iter()
        .cloned()
        .chain([OsString::from(subnet)])
        .chain(behind.iter().cloned())
        .collect()
}

/// The line with what stands behind `--subnet` in the place of SUBNET, for verbs that have that place.
pub(super) fn moved(args: Vec<OsString>) -> Vec<OsString> {
    let Some(place) = place(&args).filter(|p| p.argument == "subnet") else {
        return args;
    };
    let end = args.iter().position(|a| a == "--").unwrap_or(args.len());
    let own = |arg: &OsString| {
        arg.to_str()
            .is_some_and(|a| a == "--subnet" || a.starts_with("--subnet="))
    };
    let Some(found) = args
        .iter()
        .take(end)
        .skip(place.at)
        .position(own)
        .map(|i| i.saturating_add(place.at))
    else {
        return args;
    };
    let mut args = args;
    let option = args.remove(found);
    let subnet = match option.to_str().and_then(|o| o.strip_prefix("--subnet=")) {
        Some(subnet) => subnet.to_owned(),
        None if found < args.len() => args.remove(found).to_string_lossy().into_owned(),
        // Its value is missing: the parser says so.
        None => return [args, vec![option]].concat(),
    };
    with(&args, place.at, &subnet)
}

/// Why a line was not taken.
pub(super) enum Refused {
    /// The parser's word.
    Parser(clap::Error),
    /// Ours.
    Own(Error),
}

/// Reads a line. Where SUBNET may have been left out, the daemon is asked for its only subnet.
pub(super) fn parse(args: &[OsString]) -> Result<Cli, Refused> {
    let typed = usage::parse(args).map_err(Refused::Parser);
    let guess = |p: &Place| p.argument == "subnet" && p.required && !usage::ends_something(&p.verb);
    let Some(place) = place(args).filter(guess) else {
        return typed;
    };
    let Ok(trial) = usage::parse(&with(args, place.at, "x")) else {
        return typed;
    };
    let client = Client::new(trial.global.socket.unwrap_or_else(default_socket));
    let subnets = match (blocking(subnets(&client)), typed.is_ok()) {
        (Ok(subnets), _) => subnets,
        // What was typed has the same error, and is no less right.
        (Err(_), true) => return typed,
        (Err(error), false) => return Err(Refused::Own(error)),
    };
    if typed.is_ok() && named(args).is_some_and(|text| is_here(&subnets, &text)) {
        return typed;
    }
    let rest = rest(args, place.at);
    match (
        one(&subnets, &format!("byway {} SUBNET{rest}", place.verb)),
        typed,
    ) {
        (Ok(id), _) => usage::parse(&with(args, place.at, &id)).map_err(Refused::Parser),
        (Err(_), Ok(typed)) => Ok(typed),
        (Err(error), Err(_)) => Err(Refused::Own(
            blocking(only_relays(&client)).unwrap_or(error),
        )),
    }
}

/// What was typed behind the verb, as it may be typed again; nothing where that takes a shell's quotes.
fn rest(args: &[OsString], at: usize) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@=+,%".contains(c);
    let behind = args.iter().skip(at).map(|arg| arg.to_str());
    let words: Option<Vec<&str>> = behind
        .map(|arg| arg.filter(|a| !a.is_empty() && a.chars().all(plain)))
        .collect();
    words
        .unwrap_or_default()
        .iter()
        .map(|word| format!(" {word}"))
        .collect()
}

/// What was read as the subnet.
fn named(args: &[OsString]) -> Option<String> {
    let mut matches = usage::words().try_get_matches_from(args).ok()?;
    while let Some((_, below)) = matches.remove_subcommand() {
        matches = below;
    }
    matches.get_one::<String>("subnet").cloned()
}

fn is_here(subnets: &[SubnetInfo], text: &str) -> bool {
    let all: Vec<_> = subnets
        .iter()
        .map(|s| Named::new(s.id, s.id, &s.name))
        .collect();
    find(&all, text) != Err(Miss::None)
}

async fn subnets(client: &Client) -> Result<Vec<SubnetInfo>, Error> {
    match client.call(&Request::SubnetLs).await? {
        Response::Subnets { subnets } => Ok(subnets),
        _ => Err(Error::new(
            ErrorKind::Failed,
            Code::Api,
            "the daemon answered something else than its subnets",
        )),
    }
}

/// The error of a daemon that only relays, which never has a subnet.
///
/// # Errors
/// It does not say that it only relays.
async fn only_relays(client: &Client) -> Result<Error, Error> {
    let status = Request::Status { subnet: None };
    match client.call(&status).await? {
        Response::Status(status) if status.relay_only => Ok(Error::relay_only()),
        _ => Err(Error::new(
            ErrorKind::Failed,
            Code::Api,
            "the daemon is more than a relay",
        )),
    }
}

/// The ID of the only subnet; what waits to be let in is none yet.
fn one(subnets: &[SubnetInfo], line: &str) -> Result<String, Error> {
    let here: Vec<&SubnetInfo> = subnets
        .iter()
        .filter(|s| !matches!(s.state, SubnetState::Pending | SubnetState::Refused))
        .collect();
    match here.as_slice() {
        [one] => Ok(one.id.to_string()),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            Code::NoSubnet,
            "this machine has no subnet",
        )
        .hint("byway create NAME")),
        several => {
            let names: Vec<String> = several.iter().map(|s| s.name.to_string()).collect();
            let message = format!(
                "this machine has {} subnets: say which of {} is meant",
                several.len(),
                names.join(", ")
            );
            Err(wrong(Code::Usage, message).hint(line))
        }
    }
}

/// The ID of this machine's only subnet; `line` is what to type where there are several.
pub(super) async fn only(context: &Context, line: &str) -> Result<String, Error> {
    one(&subnets(&context.client).await?, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn an_option_stands_for_the_place() {
        for (typed, read) in [
            (
                "byway lease add 10.1.0.0/24 --subnet lab",
                "byway lease add lab 10.1.0.0/24",
            ),
            (
                "byway --socket /s lease --json rm --subnet=lab 10.1.0.7",
                "byway --socket /s lease --json rm lab 10.1.0.7",
            ),
            (
                "byway lease import --subnet lab file",
                "byway lease import lab file",
            ),
            ("byway status --subnet lab", "byway status lab"),
            // These have an option of that name.
            (
                "byway detach web --subnet lab",
                "byway detach web --subnet lab",
            ),
            (
                "byway workload show web --subnet lab",
                "byway workload show web --subnet lab",
            ),
            ("byway id --subnet lab", "byway id --subnet lab"),
            ("byway lease ls --subnet", "byway lease ls --subnet"),
        ] {
            assert_eq!(moved(words(typed)), words(read), "{typed}");
        }
    }

    #[test]
    fn the_place_is_behind_the_verb_and_only_where_it_is_asked_for() {
        let found = |line: &str| place(&words(line)).map(|p| (p.at, p.argument, p.required));
        let subnet = |at, required| Some((at, "subnet".to_owned(), required));
        assert_eq!(
            found("byway --socket member map --json add tcp"),
            subnet(6, true)
        );
        assert_eq!(found("byway status"), subnet(2, false));
        assert_eq!(found("byway map"), None);
        assert_eq!(found("byway fly"), None);
    }

    #[test]
    fn what_was_typed_stands_behind_the_subnet_that_is_asked_for() {
        let rest = |line: &str| rest(&words(line), 3);
        assert_eq!(rest("byway member approve c --json"), " c --json");
        assert_eq!(rest("byway member ls"), "");
        assert_eq!(rest("byway dns add web --txt it's"), "");
    }

    #[test]
    fn another_word_for_a_verb_that_ends_something_guesses_no_subnet_either() {
        for (line, verb) in [
            ("byway lease delete x", "lease rm"),
            ("byway member rm x", "member remove"),
        ] {
            let place = place(&words(line)).unwrap();
            assert!(
                place.verb == verb && usage::ends_something(&place.verb),
                "{line}: {}",
                place.verb
            );
        }
    }
}
