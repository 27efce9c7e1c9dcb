//! A plugin is this program under another name: a link in the directories that an engine looks into.

use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::api::types::{Done, Error, ErrorKind};
use crate::model::error::Code;

pub(super) fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    let message = format!("{what} {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::NotPermitted, Code::Permission, message).hint("sudo, or as root")
        }
        _ => Error::new(ErrorKind::Failed, Code::File, message),
    }
}

fn in_the_way(path: &Path) -> Error {
    let message = format!("{} is there already, and is not ours", path.display());
    Error::new(ErrorKind::Conflict, Code::File, message).hint(format!("ls -l {}", path.display()))
}

/// What is at the place of the plugin.
enum Place {
    Free,
    /// A link to a program called as this one.
    Ours(PathBuf),
    Others,
}

fn look(path: &Path, program: &Path) -> Result<Place, Error> {
    match std::fs::read_link(path) {
        Ok(target) if target.file_name() == program.file_name() => Ok(Place::Ours(target)),
        Ok(_) => Ok(Place::Others),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Place::Free),
        // It is no link.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Place::Others),
        Err(error) => Err(failed("look at", path, &error)),
    }
}

/// This program, by the path that the links lead to.
pub(super) fn program() -> Result<PathBuf, Error> {
    std::env::current_exe()
        .and_then(|path| path.canonicalize())
        .map_err(|error| failed("find", Path::new("this program"), &error))
}

/// A link that is to be made.
#[derive(Debug)]
pub(super) struct Due {
    path: PathBuf,
    /// Whether one of ours is there that leads elsewhere.
    replaces: bool,
}

/// The links of that name that are missing in directories.
///
/// # Errors
/// `E-FILE` where something else is in the place of one.
pub(super) fn missing(dirs: &[PathBuf], name: &str, program: &Path) -> Result<Vec<Due>, Error> {
    let mut due = Vec::new();
    for dir in dirs {
        let path = dir.join(name);
        match look(&path, program)? {
            Place::Free => due.push(Due {
                path,
                replaces: false,
            }),
            Place::Ours(target) if target != program => due.push(Due {
                path,
                replaces: true,
            }),
            Place::Ours(_) => {}
            Place::Others => return Err(in_the_way(&path)),
        }
    }
    Ok(due)
}

/// Makes links to this program.
pub(super) fn make(due: &[Due], program: &Path) -> Result<(), Error> {
    due.iter()
        .try_for_each(|due| link(&due.path, program, due.replaces))
}

/// Takes links of that name out of directories. What is not ours stays, and is no error. Returns what was removed.
pub(super) fn take(dirs: &[PathBuf], name: &str) -> Result<Vec<String>, Error> {
    let program = program()?;
    let mut removed = Vec::new();
    for dir in dirs {
        let path = dir.join(name);
        if let Place::Ours(_) = look(&path, &program)? {
            std::fs::remove_file(&path).map_err(|error| failed("remove", &path, &error))?;
            removed.push(path.display().to_string());
        }
    }
    Ok(removed)
}

/// The answer to a removal of these.
pub(super) fn taken(removed: &[String]) -> Done {
    let message = if removed.is_empty() {
        "there was no plugin of ours".to_owned()
    } else {
        format!("removed {}", removed.join(" and "))
    };
    Done {
        message,
        changed: !removed.is_empty(),
    }
}

/// Makes the link under another name first, so that a runtime finds the former plugin or the new one.
fn link(path: &Path, program: &Path, replaces: bool) -> Result<(), Error> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|error| failed("make", dir, &error))?;
    }
    if !replaces {
        return symlink(program, path).map_err(|error| failed("link", path, &error));
    }
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    symlink(program, &beside)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|error| failed("link", path, &error))
}

/// Writes a file that must not be there yet.
pub(super) fn write(file: &Path, text: &str) -> Result<(), Error> {
    let written = std::fs::File::options()
        .write(true)
        .create_new(true)
        .open(file)
        .and_then(|mut out| out.write_all(text.as_bytes()));
    written.map_err(|error| failed("write", file, &error))
}
