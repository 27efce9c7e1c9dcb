//! Verbs that end something ask for its name where a person sits at a terminal: a name is not typed by mistake.

use std::io::{self, BufRead, IsTerminal};

use super::{Context, blocking, print};
use crate::api::types::{Error, ErrorKind, Request, Response};
use crate::model::error::Code;

/// Asks for the name of a subnet, whatever was typed to mean it.
pub(super) fn subnet(text: &str, yes: bool, what: &str, context: &Context) -> Result<(), Error> {
    if yes || !at_terminal() {
        return Ok(());
    }
    let show = Request::SubnetShow {
        subnet: text.to_owned(),
    };
    let name = match blocking(context.client.call(&show)) {
        Ok(Response::Subnet(info)) => info.name.to_string(),
        // What is left already has no other name than the one typed; the verb itself says what is wrong.
        _ => text.to_owned(),
    };
    ask(&name, &format!("subnet {name}: {what}"))
}

/// Asks for the name of a member.
pub(super) fn member(text: &str, subnet: &str, yes: bool) -> Result<(), Error> {
    if yes || !at_terminal() {
        Ok(())
    } else {
        ask(
            text,
            &format!("member {text} is removed from subnet {subnet}"),
        )
    }
}

/// Whether somebody reads what is asked and can answer.
fn at_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn ask(name: &str, what: &str) -> Result<(), Error> {
    print::stderr(&format!(
        "{}. Type {} to go on: ",
        print::clean(what),
        print::clean(name)
    ));
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    judge(name, read.map_or("", |_| line.as_str()))
}

fn judge(name: &str, typed: &str) -> Result<(), Error> {
    if typed.trim().eq_ignore_ascii_case(name) {
        return Ok(());
    }
    let message = format!("nothing was done: {name} was not typed");
    Err(Error::new(ErrorKind::Failed, Code::NotConfirmed, message)
        .hint("the same with --yes, where nobody is to be asked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_name_goes_on() {
        for typed in ["lab\n", " Lab \r\n"] {
            assert_eq!(judge("lab", typed), Ok(()));
        }
        for typed in ["", "\n", "y\n", "yes\n", "la\n", "lab2\n"] {
            assert_eq!(
                judge("lab", typed).unwrap_err().code,
                "E-NOT-CONFIRMED",
                "{typed:?}"
            );
        }
    }
}
