//! `byway cleanup`: what a daemon left on this machine, without that daemon.
//!
//! It makes nothing, no directory and no file: who names a wrong directory has not begun a state there.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixStream;

use super::instance_of;
use crate::api::client::Client;
use crate::api::types::{DEFAULT_SOCKET, Done, Error, ErrorKind, Request, Response};
use crate::command;
use crate::config::Config;
use crate::helper;
use crate::host::{self, Cleaned, Guests, Process};
use crate::model::error::Code;
use crate::model::members::Identity;
use crate::service::portmap;
use crate::store;
use crate::tap;

/// What is said where there was nothing to do.
const NOTHING: &str = "nothing was left";
/// How long a daemon may take to say who it is.
const ASKED: Duration = Duration::from_secs(5);

/// Removes what a daemon with this state directory left in the kernel after a crash, or with `all` what any daemon left.
/// A daemon with another key may run meanwhile: what bears its mark is not touched.
///
/// # Errors
/// `E-RUNNING` while that daemon lives, or with `all` any that answers or has packets to carry here; `E-NO-KEY` where nobody
/// knows its mark; `E-NOT-REMOVED` names what stays.
pub fn cleanup(config: &Config, all: bool, guests: Guests) -> Result<Done, Error> {
    let failed = |e: anyhow::Error| Error::new(ErrorKind::Failed, Code::Cleanup, format!("{e:#}"));
    helper::ask_at(&config.helper_socket);
    let dir = config.state_dir.as_path();
    // Held until everything is gone: no daemon starts on the directory meanwhile.
    let held = store::hold(dir);
    if held.as_ref().is_err_and(store::StoreError::is_conflict) {
        let message = format!(
            "a daemon runs on {}: it would lose what carries its packets",
            dir.display()
        );
        return Err(running(message, host::owner(dir).as_slice()));
    }
    let instance = mark(config, all)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
        .map_err(failed)?;
    // What answers there is a daemon that lives.
    let unlinked = command::docker::remove_dead(config);
    runtime.block_on(async {
        if let Some(process) = answers(&config.socket, instance.as_deref()).await {
            let socket = config.socket.display();
            let message =
                format!("a daemon answers on {socket}: it would lose what carries its packets");
            return Err(running(message, process.as_slice()));
        }
        let living = host::living(instance.as_deref()).await.map_err(failed)?;
        if !living.is_empty() {
            let run = if living.len() == 1 { "runs" } else { "run" };
            let each: Vec<String> = living.iter().map(ToString::to_string).collect();
            let message = format!(
                "what would be removed is in use: {} {run} here",
                each.join(" and ")
            );
            let processes: Vec<Process> = living
                .into_iter()
                .filter_map(|living| living.process)
                .collect();
            return Err(running(message, &processes));
        }
        let mut done = done(
            host::cleanup(instance.as_deref(), dir, guests)
                .await
                .map_err(failed)?,
            config,
            all,
        )?;
        name_sockets(&mut done, unlinked, config);
        name_ports(&mut done, dir).await;
        if !store::exists_in(dir) {
            done.message = format!("{}\n{}", no_state(dir), done.message);
        }
        Ok(done)
    })
}

/// Adds the sockets that nobody listens at any more: that of Docker's plugin, where it was removed, and those of guests' streams,
/// which are removed here.
fn name_sockets(done: &mut Done, unlinked: bool, config: &Config) {
    let plugin = unlinked.then(|| "the socket of Docker's plugin".to_owned());
    let streams = tap::remove_dead(&config.socket).into_iter();
    let streams = streams.map(|socket| socket.display().to_string());
    for socket in plugin.into_iter().chain(streams) {
        done.changed = true;
        done.message = format!("removed {socket}\n{}", done.message);
    }
}

/// Has the router close the ports that it opened for the daemon of that directory, and adds a line for each.
async fn name_ports(done: &mut Done, dir: &Path) {
    for line in portmap::cleanup(dir).await {
        done.message = match done.changed || done.message != NOTHING {
            true => format!("{line}\n{}", done.message),
            false => line.clone(),
        };
        done.changed |= line.starts_with("removed");
    }
}

/// The mark of what is to be removed; none: every daemon's. It follows from the key. Without it nobody knows which traces
/// were this directory's, and those of a daemon that lives elsewhere are not to be touched.
fn mark(config: &Config, all: bool) -> Result<Option<String>, Error> {
    if all {
        return Ok(None);
    }
    let dir = config.state_dir.as_path();
    match store::identity(dir, config.identity_file.as_deref(), true) {
        Ok(seed) => Ok(Some(instance_of(
            Identity::new(&seed, [0; 32], [0; 32]).peer,
        ))),
        Err(error) => {
            let why = if store::exists_in(dir) {
                error.to_string()
            } else {
                no_state(dir)
            };
            let message = format!(
                "nobody can tell which traces are those of {}: {why}",
                dir.display()
            );
            let hint = again(config, " --all")
                + "      (removes what any daemon left here, while none runs)";
            Err(Error::new(ErrorKind::NotFound, Code::NoKey, message).hint(hint))
        }
    }
}

fn no_state(dir: &Path) -> String {
    format!("there is no state in {}", dir.display())
}

/// What answers on the socket, where that may be the daemon whose mark is to be removed; its process where it can be seen.
async fn answers(socket: &Path, instance: Option<&str>) -> Option<Option<Process>> {
    let stream = UnixStream::connect(socket).await.ok()?;
    if let Some(wanted) = instance {
        let asked = tokio::time::timeout(ASKED, Client::new(socket).call(&Request::Id)).await;
        // One that does not say who it is may be the one.
        if matches!(asked, Ok(Ok(Response::Id(id))) if instance_of(id.peer_id) != wanted) {
            return None;
        }
    }
    let pid = stream
        .peer_cred()
        .ok()
        .and_then(|cred| u32::try_from(cred.pid()?).ok());
    Some(pid.filter(|pid| *pid != 0).map(Process::of))
}

fn running(message: String, processes: &[Process]) -> Error {
    let mut stops: Vec<String> = processes.iter().map(Process::stop).collect();
    stops.dedup();
    let hint = match stops.as_slice() {
        [] => "stop it first".to_owned(),
        stops => format!("{}      (then the same again)", stops.join("; ")),
    };
    Error::new(ErrorKind::Conflict, Code::Running, message).hint(hint)
}

/// What cleans up behind the daemon with this configuration.
pub(super) fn again(config: &Config, flag: &str) -> String {
    let socket = match config.socket.as_path() {
        path if path == Path::new(DEFAULT_SOCKET) => String::new(),
        path => format!(" --socket {}", store::quoted(path)),
    };
    format!(
        "byway cleanup{flag} --state-dir {}{socket}",
        store::quoted(&config.state_dir)
    )
}

/// One line for each thing that was done.
fn done(Cleaned { done, left }: Cleaned, config: &Config, all: bool) -> Result<Done, Error> {
    if left.is_empty() {
        let message = if done.is_empty() {
            NOTHING.to_owned()
        } else {
            done.join("\n")
        };
        return Ok(Done {
            message,
            changed: !done.is_empty(),
        });
    }
    let left: Vec<String> = left
        .iter()
        .map(|f| format!("{}: {}", f.what, f.why))
        .collect();
    let done = if done.is_empty() {
        String::new()
    } else {
        format!("; {}", done.join(", "))
    };
    Err(Error::new(
        ErrorKind::Failed,
        Code::NotRemoved,
        format!("not everything was removed: {}{done}", left.join("; ")),
    )
    .hint(again(config, if all { " --all" } else { "" })))
}

#[cfg(test)]
mod tests {
    use super::super::load::load;
    use super::*;

    fn config(dir: &Path) -> Config {
        Config {
            state_dir: dir.to_owned(),
            socket: dir.join("none.sock"),
            ..Config::defaults("a")
        }
    }

    #[test]
    fn a_directory_without_a_state_is_named_and_left_as_it_was() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("state");
        for round in 0..2 {
            let error = cleanup(&config(&dir), false, Guests::Remove).unwrap_err();
            assert_eq!(
                (error.kind, error.code.as_str()),
                (ErrorKind::NotFound, "E-NO-KEY")
            );
            assert!(
                error
                    .message
                    .ends_with(&format!("there is no state in {}", dir.display())),
                "{error}"
            );
            assert_eq!(
                (
                    dir.exists(),
                    std::fs::read_dir(parent.path()).unwrap().count()
                ),
                (round == 1, round)
            );
            std::fs::create_dir_all(&dir).unwrap();
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        }
        load(&config(&dir)).unwrap();
    }

    #[test]
    fn a_state_that_nothing_was_written_to_starts_as_a_new_one_and_any_other_wants_its_key() {
        let dir = tempfile::tempdir().unwrap();
        drop(store::Store::open(dir.path()).unwrap());
        let first = load(&config(dir.path())).unwrap();
        let batch = store::Batch {
            put_local: vec![("x".to_owned(), vec![1])],
            ..store::Batch::default()
        };
        first.store.commit(&batch).unwrap();
        drop(first);
        std::fs::remove_file(dir.path().join(store::IDENTITY_FILE)).unwrap();
        assert_eq!(
            load(&config(dir.path())).map(|_| ()).unwrap_err().code,
            "E-KEY-MISSING"
        );
    }

    #[test]
    fn a_daemon_on_the_directory_is_not_stripped_and_its_process_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let running = load(&config(dir.path())).unwrap();
        for all in [false, true] {
            let error = cleanup(&config(dir.path()), all, Guests::Remove).unwrap_err();
            assert_eq!(error.code, "E-RUNNING");
            assert!(
                error
                    .hint
                    .starts_with(&format!("kill {} ", std::process::id())),
                "{}",
                error.hint
            );
        }
        drop(running);
    }
}
