//! Asks a workload by a command, which the engine of its container runs.

use std::time::Duration;

use super::Answer;
use crate::api::types::{Error, ErrorKind};
use crate::command::Commands;
use crate::engine::docker::{self, Brand};
use crate::helper::{self, Command, Former, Ran};
use crate::model::error::Code;
use crate::node::Runner;

/// What the command exits with, by the custom of shells, that cannot be run or is not found.
const CANNOT_RUN: [i64; 2] = [126, 127];

/// A command as the engine of a container is asked to run it; none while it is not known where.
///
/// # Errors
/// Why nobody can run it, in words.
fn command(runner: &Runner, words: &[String]) -> Result<Option<Command>, String> {
    let (engine, container) = match runner {
        Runner::Nobody(why) => return Err((*why).to_owned()),
        Runner::Untold => return Ok(None),
        Runner::Container { engine, id } => (engine.clone(), id.clone()),
    };
    let usual = || docker::socket_of(Brand::Podman, None).map_err(|error| error.to_string());
    Ok(Some(Command {
        engine: engine.map_or_else(usual, Ok)?,
        container,
        words: words.to_vec(),
    }))
}

/// Refuses a command that could never be run, before it is taken over as a check.
///
/// # Errors
/// `E-HEALTH` where nobody can run it; `E-PERMISSION` where the user who asks may not have it run.
pub(super) async fn check(
    ctx: &Commands,
    workload: String,
    subnet: Option<String>,
    words: &[String],
) -> Result<(), Error> {
    let (name, runner) = ctx.node.runner_of(workload, subnet).await?;
    if ctx.asker.is_some() {
        // Who may say to an engine what it runs is root, or is asked by whoever started the container.
        let message = format!("only root has a command run in {name}");
        let hint = "the same as root, or start the container with --label byway.health='exec …'";
        return Err(Error::new(ErrorKind::NotPermitted, Code::Permission, message).hint(hint));
    }
    let refused = |why: &str| {
        let message = format!("no command can be run in {name}: {why}");
        Error::new(ErrorKind::Usage, Code::Health, message).hint(format!(
            "byway workload health {name} tcp PORT, or http URL"
        ))
    };
    match command(&runner, words).map_err(|why| refused(&why))? {
        None => Err(refused("its engine has not told which container it is")),
        Some(command) => match helper::may_run(command).await {
            Err(helper::Error::NotAllowed(why)) => Err(refused(&why)),
            // Nothing is known of one that does not run now: it is asked once it does.
            Ok(()) | Err(_) => Ok(()),
        },
    }
}

/// Asks by a command. Gives what came of it, and what is known of the command now.
pub(super) async fn ask(
    runner: &Runner,
    words: &[String],
    limit: Duration,
    former: Former,
) -> (Answer, Former) {
    let command = match command(runner, words) {
        Ok(Some(command)) => command,
        Ok(None) => {
            let why = "its engine has not told which container it is";
            return (Answer::Unknown(why.to_owned()), former);
        }
        Err(why) => return (Answer::Ill(why), former),
    };
    let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    match helper::run(command, millis, former.clone()).await {
        Ok(Ran::Ended { code: 0, .. }) => (Answer::Well, Former::Ended),
        Ok(Ran::Ended { code, said }) => {
            let what = match CANNOT_RUN.contains(&code) {
                true => format!("the command cannot be run ({code})"),
                false => format!("the command ends with {code}"),
            };
            let said = if said.is_empty() {
                said
            } else {
                format!(": {said}")
            };
            (Answer::Ill(what + &said), Former::Ended)
        }
        Ok(Ran::GoesOn { id, talks }) => {
            let why = match talks {
                true => "the command says too much".to_owned(),
                false => format!("the command is not done within {millis} ms, and goes on"),
            };
            (Answer::Ill(why), Former::Runs(id))
        }
        Ok(Ran::Before { id }) => {
            let why = "the command of before goes on; its engine cannot end it, a restart of the container does";
            (Answer::Ill(why.to_owned()), Former::Runs(id))
        }
        Err(helper::Error::NotAllowed(why)) => (Answer::Ill(why), former),
        // It may have been begun and not be known.
        Err(error) => (Answer::Unknown(error.to_string()), unknown(former)),
    }
}

/// What is known of a command after a question that came to nothing.
fn unknown(former: Former) -> Former {
    match former {
        Former::Runs(id) => Former::Runs(id),
        Former::Ended | Former::Unknown => Former::Unknown,
    }
}
