//! The CNI plugin is this program under another name: a link in the directories that runtimes look into.

use std::io;
use std::path::{Path, PathBuf};

use super::link::{make, missing, program, take, taken, write};
use crate::api::types::{Done, Error, ErrorKind};
use crate::model::error::Code;

/// The name by which this program is the plugin.
const NAME: &str = "byway-cni";
/// Where runtimes look: what CNI itself proposes, and the directory of Debian's packages.
const DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

fn says_otherwise(file: &Path) -> Error {
    let message = format!(
        "{} is there already and says something else",
        file.display()
    );
    Error::new(ErrorKind::Conflict, Code::File, message).hint(format!("cat {}", file.display()))
}

/// Runtimes read a list of plugins only from a file that is called so.
fn is_list(file: &Path) -> Result<(), Error> {
    if file.extension().is_some_and(|e| e == "conflist") {
        return Ok(());
    }
    let message = format!(
        "{} is read as a list of plugins only where its name ends in .conflist",
        file.display()
    );
    Err(Error::new(ErrorKind::Usage, Code::File, message))
}

/// The directories that are meant; where none is named and none is there, the first is made.
fn wanted(dirs: &[PathBuf]) -> Vec<PathBuf> {
    if !dirs.is_empty() {
        return dirs.to_vec();
    }
    let there: Vec<PathBuf> = DIRS
        .iter()
        .map(PathBuf::from)
        .filter(|dir| dir.is_dir())
        .collect();
    if there.is_empty() {
        DIRS.iter().take(1).map(PathBuf::from).collect()
    } else {
        there
    }
}

/// Puts the plugin into directories, and writes the configuration of a network where one is asked for. All of it is looked at
/// before any of it is done.
pub(super) fn install(
    dirs: &[PathBuf],
    conf: Option<(&Path, &str)>,
    socket: Option<&Path>,
) -> Result<Done, Error> {
    let program = program()?;
    let dirs = wanted(dirs);
    let due = missing(&dirs, NAME, &program)?;
    // A configuration that says the same already is done.
    let conf = match conf {
        Some((file, subnet)) => {
            let text = configuration(subnet, socket);
            is_list(file)?;
            match std::fs::read_to_string(file) {
                Ok(found) if found == text => None,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some((file, text)),
                _ => return Err(says_otherwise(file)),
            }
        }
        None => None,
    };
    make(&due, &program)?;
    if let Some((file, text)) = &conf {
        write(file, text)?;
    }
    let places: Vec<String> = dirs
        .iter()
        .map(|dir| dir.join(NAME).display().to_string())
        .collect();
    let beside = conf.as_ref().map_or_else(String::new, |(file, _)| {
        format!("; its configuration is {}", file.display())
    });
    Ok(Done {
        message: format!("the plugin is {}{beside}", places.join(" and ")),
        changed: !due.is_empty() || conf.is_some(),
    })
}

/// A list with this plugin alone. Runtimes of before CNI 1.1 read `cniVersion` only.
fn configuration(subnet: &str, socket: Option<&Path>) -> String {
    let mut plugin = serde_json::json!({
        "type": NAME,
        "subnet": subnet,
        "capabilities": {
            "portMappings": true,
            "ips": true,
            "mac": true,
            "aliases": true,
            "dns": true,
        },
    });
    if let (Some(socket), Some(plugin)) = (socket, plugin.as_object_mut()) {
        let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
        plugin.insert("socket".into(), socket.to_string_lossy().into());
    }
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": format!("byway-{subnet}"),
        "plugins": [plugin],
    });
    format!("{list:#}\n")
}

/// Takes the plugin out of directories. What is not ours stays, and is no error.
pub(super) fn remove(dirs: &[PathBuf]) -> Result<Done, Error> {
    let every: Vec<PathBuf> = DIRS.iter().map(PathBuf::from).collect();
    let removed = take(if dirs.is_empty() { &every } else { dirs }, NAME)?;
    Ok(taken(&removed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_plugin_is_put_there_once_and_taken_away_again() {
        assert_eq!(NAME, crate::engine::cni::NAME);
        let dir = tempfile::tempdir().unwrap();
        let (bin, conf) = (
            dir.path().join("cni/bin"),
            dir.path().join("10-lab.conflist"),
        );
        let dirs = [bin.clone()];
        let socket = Path::new("/run/two.sock");
        let done = install(&dirs, Some((&conf, "lab")), Some(socket)).unwrap();
        assert!(done.changed);
        assert_eq!(
            std::fs::read_link(bin.join(NAME)).unwrap(),
            program().unwrap()
        );
        let list: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&conf).unwrap()).unwrap();
        assert_eq!(
            (
                &list["plugins"][0]["type"],
                &list["plugins"][0]["socket"],
                &list["name"]
            ),
            (
                &"byway-cni".into(),
                &"/run/two.sock".into(),
                &"byway-lab".into()
            )
        );
        assert!(!install(&dirs, None, None).unwrap().changed);
        let same = install(&dirs, Some((&conf, "lab")), Some(socket)).unwrap();
        assert!(!same.changed);
        let plain = dir.path().join("10-lab.conf");
        let refused = install(&dirs, Some((&plain, "lab")), None).unwrap_err();
        assert!(refused.message.contains(".conflist") && !plain.exists());
        let again = install(&dirs, Some((&conf, "lab")), None).unwrap_err();
        assert_eq!(
            (again.kind, again.code.as_str()),
            (ErrorKind::Conflict, "E-FILE")
        );
        // A link of a former version leads elsewhere.
        std::fs::remove_file(bin.join(NAME)).unwrap();
        let former = Path::new("/old").join(program().unwrap().file_name().unwrap());
        symlink(former, bin.join(NAME)).unwrap();
        assert!(install(&dirs, None, None).unwrap().changed);
        assert_eq!(
            std::fs::read_link(bin.join(NAME)).unwrap(),
            program().unwrap()
        );
        assert!(remove(&dirs).unwrap().changed);
        assert!(!remove(&dirs).unwrap().changed);
        assert_eq!(std::fs::read_dir(&bin).unwrap().count(), 0);
    }

    #[test]
    fn what_another_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().to_owned()];
        std::fs::write(dir.path().join(NAME), "a program").unwrap();
        assert_eq!(
            install(&dirs, None, None).unwrap_err().kind,
            ErrorKind::Conflict
        );
        assert!(!remove(&dirs).unwrap().changed);
        assert!(dir.path().join(NAME).exists());
    }
}
