//! The netavark plugin is this program as `byway` in a directory `netavark`, into which Podman looks for network drivers.

use std::io;
use std::path::{Path, PathBuf};

use super::link::{failed, make, missing, program, take, taken, write};
use crate::api::types::{Done, Error, ErrorKind};
use crate::model::error::Code;

/// Name of the plugin, which is the driver's.
const NAME: &str = "byway";
/// Name of the directory by which this program knows that it is the plugin.
const DIR: &str = "netavark";
/// Where Podman looks unless it is told otherwise.
const DIRS: [&str; 4] = [
    "/usr/local/libexec/netavark",
    "/usr/libexec/netavark",
    "/usr/local/lib/netavark",
    "/usr/lib/netavark",
];
/// The key that tells Podman otherwise, in its section `[network]`.
const KEY: &str = "netavark_plugin_dirs";
/// The first line of a file that this program wrote.
const OURS: &str = "# Written by: byway integration install podman";

/// Where Podman keeps what is read and written here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    /// Configurations of every container tool, of which the last that names a key counts.
    read: &'a [&'a str],
    /// Directory of further ones, which count after those.
    parts: &'a str,
    /// The file below `parts` that is ours.
    own: &'a str,
    /// Directory of the networks that root made, or that the user made.
    networks: &'a str,
    /// Where the plugin goes where none is named; none for the first of Podman's own directories.
    dir: Option<&'a str>,
}

/// The places of a machine.
const MACHINE: Places<'static> = Places {
    read: &[
        "/usr/share/containers/containers.conf",
        "/etc/containers/containers.conf",
    ],
    parts: "/etc/containers/containers.conf.d",
    own: "byway.conf",
    networks: "/etc/containers/networks",
    dir: None,
};

/// Acts with the places of whoever runs this program: the machine's for root, else those in the user's home.
pub(super) fn with_places<T>(act: impl FnOnce(Places<'_>) -> T) -> Result<T, Error> {
    if nix::unistd::geteuid().is_root() {
        return Ok(act(MACHINE));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let home = home.filter(|home| home.is_absolute()).ok_or_else(|| {
        let message = "HOME is not set: Podman keeps a user's configuration there";
        Error::new(ErrorKind::Usage, Code::File, message)
    })?;
    let of = |variable: &str, usual: &str| {
        let own = std::env::var_os(variable).map(PathBuf::from);
        let own = own.filter(|path| path.is_absolute());
        own.unwrap_or_else(|| home.join(usual))
            .to_string_lossy()
            .into_owned()
    };
    let containers = of("XDG_CONFIG_HOME", ".config") + "/containers";
    let conf = format!("{containers}/containers.conf");
    let data = of("XDG_DATA_HOME", ".local/share");
    let dir = home.join(".local/libexec/netavark");
    Ok(act(Places {
        // A user's own come after those of the machine.
        read: &[MACHINE.read, &[conf.as_str()]].concat(),
        parts: &format!("{containers}/containers.conf.d"),
        own: MACHINE.own,
        networks: &format!("{data}/containers/storage/networks"),
        dir: Some(&dir.to_string_lossy()),
    }))
}

impl Places<'_> {
    fn own(&self) -> PathBuf {
        Path::new(self.parts).join(self.own)
    }

    /// The configuration that tells Podman where to look, with the text of the list; none where its own places count.
    fn told(&self) -> Result<Option<(PathBuf, String)>, Error> {
        let own = self.own();
        let mut files: Vec<PathBuf> = self.read.iter().map(PathBuf::from).collect();
        let mut parts = entries(Path::new(self.parts), "conf")?;
        parts.retain(|part| *part != own);
        files.extend(parts);
        let mut last = None;
        for file in files {
            if let Some(list) = text_of(&file)?.as_deref().and_then(list) {
                last = Some((file, list));
            }
        }
        Ok(last)
    }

    /// Networks of this driver.
    fn networks(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for file in entries(Path::new(self.networks), "json")? {
            let text = text_of(&file)?.unwrap_or_default();
            let network: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            if network.get("driver").and_then(|d| d.as_str()) == Some(NAME) {
                names.extend(
                    file.file_stem()
                        .map(|name| name.to_string_lossy().into_owned()),
                );
            }
        }
        Ok(names)
    }
}

/// The files of a directory with that ending, in the order of their names; none where there is no directory.
fn entries(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, Error> {
    let all = match std::fs::read_dir(dir) {
        Ok(all) => all,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(failed("read", dir, &error)),
    };
    let mut files: Vec<PathBuf> = all.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == ending));
    files.sort();
    Ok(files)
}

fn text_of(file: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", file, &error)),
    }
}

/// The value of [`KEY`] in a configuration, as it is written there.
fn list(text: &str) -> Option<String> {
    let table: toml::Table = text.parse().ok()?;
    Some(table.get("network")?.get(KEY)?.to_string())
}

/// Whether that is a link to a program called as this one.
fn is_ours(path: &Path) -> bool {
    let target = std::fs::read_link(path).ok();
    target.is_some_and(|target| target.file_name().is_some_and(|name| name == NAME))
}

/// The directory that is meant; where none is named, the first that is there, else the first.
fn wanted(dirs: &[PathBuf], places: Places<'_>) -> Result<PathBuf, Error> {
    let dir = match dirs {
        [] => {
            // What root has put there serves every user.
            let has = |dir: &&str| is_ours(&Path::new(dir).join(NAME));
            if let Some(own) = places.dir {
                return Ok(DIRS.iter().copied().find(has).unwrap_or(own).into());
            }
            let there = DIRS.iter().find(|dir| Path::new(dir).is_dir());
            return Ok(there
                .or(DIRS.first())
                .map(PathBuf::from)
                .unwrap_or_default());
        }
        [dir] => dir,
        _ => {
            let message = "podman looks for a driver in one place: name --dir once";
            return Err(Error::new(ErrorKind::Usage, Code::Usage, message));
        }
    };
    if dir.file_name().is_none_or(|name| name != DIR) {
        let message = format!(
            "{}: the directory has to be called {DIR}, by which this program knows that it is the plugin",
            dir.display()
        );
        return Err(Error::new(ErrorKind::Usage, Code::File, message));
    }
    std::path::absolute(dir).map_err(|error| failed("find", dir, &error))
}

/// The configuration that makes Podman look into one more directory.
fn configuration(dir: &Path) -> String {
    let mut all: Vec<String> = DIRS.iter().map(|dir| (*dir).to_owned()).collect();
    all.push(dir.to_string_lossy().into_owned());
    let list = toml::Value::from(all);
    format!("{OURS}\n[network]\n{KEY} = {list}\n")
}

/// Puts the plugin where Podman looks, and tells Podman of a place of another name. All of it is looked at before any of
/// it is done.
pub(super) fn install(dirs: &[PathBuf], places: Places<'_>) -> Result<Done, Error> {
    let (program, dir) = (program()?, wanted(dirs, places)?);
    let due = missing(std::slice::from_ref(&dir), NAME, &program)?;
    let usual = DIRS.iter().any(|usual| Path::new(usual) == dir);
    let own = places.own();
    let conf = match places.told()? {
        Some((_, list)) if list.contains(&format!("\"{}\"", dir.display())) => None,
        Some((file, _)) => {
            let (file, dir) = (file.display(), dir.display());
            let message = format!("{file} says where podman looks for drivers, and not into {dir}");
            let hint =
                format!("grep {KEY} {file}      (name one of those with --dir, or add it there)");
            return Err(Error::new(ErrorKind::Conflict, Code::File, message).hint(hint));
        }
        None if usual => None,
        None => {
            let text = configuration(&dir);
            match text_of(&own)? {
                Some(found) if found == text => None,
                Some(found) if !found.starts_with(OURS) => {
                    let message = format!("{} is there already, and is not ours", own.display());
                    return Err(Error::new(ErrorKind::Conflict, Code::File, message));
                }
                found => Some((text, found.is_some())),
            }
        }
    };
    make(&due, &program)?;
    if let Some((text, replaces)) = &conf {
        if *replaces {
            std::fs::remove_file(&own).map_err(|error| failed("replace", &own, &error))?;
        }
        let parts = Path::new(places.parts);
        std::fs::create_dir_all(parts).map_err(|error| failed("make", parts, &error))?;
        write(&own, text)?;
    }
    let beside = match &conf {
        Some(_) => format!("; {} tells podman of it", own.display()),
        None => String::new(),
    };
    let plugin = dir.join(NAME);
    Ok(Done {
        message: format!("the plugin is {}{beside}", plugin.display()),
        changed: !due.is_empty() || conf.is_some(),
    })
}

/// Takes the plugin out of directories, and what told Podman of it. What is not ours stays, and is no error.
///
/// # Errors
/// Podman has networks of this driver: their containers could neither start nor stop in good order.
pub(super) fn remove(dirs: &[PathBuf], places: Places<'_>) -> Result<Done, Error> {
    let networks = places.networks()?;
    if let Some(first) = networks.first() {
        let message = format!("podman has networks of byway's: {}", networks.join(", "));
        return Err(Error::new(ErrorKind::Conflict, Code::Podman, message)
            .hint(format!("podman network rm {first}")));
    }
    let own = places.own();
    let ours = text_of(&own)?.filter(|text| text.starts_with(OURS));
    // Root's are not a user's to take.
    let mut all: Vec<PathBuf> = match places.dir {
        Some(own) => vec![own.into()],
        None => DIRS.iter().map(PathBuf::from).collect(),
    };
    if !dirs.is_empty() {
        all = dirs.to_vec();
    } else if let Some(text) = &ours {
        // Where it was put by that name.
        let table: toml::Table = text.parse().unwrap_or_default();
        let named = table.get("network").and_then(|n| n.get(KEY)?.as_array());
        all.extend(
            named
                .into_iter()
                .flatten()
                .filter_map(|d| Some(d.as_str()?.into())),
        );
    }
    let mut removed = take(&all, NAME)?;
    if ours.is_some() {
        std::fs::remove_file(&own).map_err(|error| failed("remove", &own, &error))?;
        removed.push(own.display().to_string());
    }
    Ok(taken(&removed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places of a machine below a directory of the test's own.
    struct Machine {
        dir: tempfile::TempDir,
        texts: [String; 3],
    }

    impl Machine {
        fn new() -> Machine {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
            let texts = [at("containers.conf"), at("conf.d"), at("networks")];
            Machine { dir, texts }
        }

        fn with<T>(&self, act: impl FnOnce(Places<'_>) -> T) -> T {
            let [read, parts, networks] = &self.texts;
            act(Places {
                read: &[read.as_str()],
                parts,
                own: "byway.conf",
                networks,
                dir: None,
            })
        }

        fn dir(&self) -> [PathBuf; 1] {
            [self.dir.path().join("lib/netavark")]
        }

        fn own(&self) -> PathBuf {
            self.dir.path().join("conf.d/byway.conf")
        }
    }

    #[test]
    fn the_plugin_is_put_there_once_and_podman_told_and_all_of_it_taken_away() {
        assert_eq!(
            (NAME, DIR),
            (crate::engine::netavark::NAME, crate::engine::netavark::DIR)
        );
        let machine = Machine::new();
        let dirs = machine.dir();
        let install = || machine.with(|places| install(&dirs, places)).unwrap();
        assert!(install().changed);
        let plugin = dirs[0].join(NAME);
        assert_eq!(std::fs::read_link(&plugin).unwrap(), program().unwrap());
        assert!(crate::engine::netavark::is_called(plugin.as_os_str()));
        let told = list(&std::fs::read_to_string(machine.own()).unwrap()).unwrap();
        for dir in DIRS.iter().map(Path::new).chain([dirs[0].as_path()]) {
            assert!(told.contains(&format!("\"{}\"", dir.display())), "{told}");
        }
        assert!(!install().changed);
        // Nobody has to say again where it was put.
        let removed = machine.with(|places| remove(&[], places)).unwrap();
        assert!(removed.changed && !plugin.exists() && !machine.own().exists());
        assert!(
            !machine
                .with(|places| remove(&dirs, places))
                .unwrap()
                .changed
        );
    }

    #[test]
    fn what_podman_was_told_by_others_counts() {
        let machine = Machine::new();
        let dirs = machine.dir();
        let says = |text: &str| std::fs::write(&machine.texts[0], text).unwrap();
        let install = || machine.with(|places| install(&dirs, places));
        says("[network]\nnetavark_plugin_dirs = [\"/opt/netavark\"]\n");
        let refused = install().unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Conflict);
        assert!(refused.message.contains("containers.conf"), "{refused}");
        assert!(!dirs[0].exists() && !machine.own().exists());
        let named = format!(
            "[network]\nnetavark_plugin_dirs = [\"{}\"]\n",
            dirs[0].display()
        );
        says(&named);
        assert!(install().unwrap().changed && !machine.own().exists());
        says("# netavark_plugin_dirs = [\"/opt/netavark\"]\n[network]\n");
        assert!(install().unwrap().changed && machine.own().exists());
        // A file of that name that is somebody's own.
        std::fs::write(machine.own(), "[network]\n").unwrap();
        assert_eq!(install().unwrap_err().kind, ErrorKind::Conflict);
        machine.with(|places| remove(&dirs, places)).unwrap();
        assert!(machine.own().exists());
    }

    #[test]
    fn it_stays_while_podman_has_networks_of_it() {
        let machine = Machine::new();
        std::fs::create_dir(&machine.texts[2]).unwrap();
        let network = |name: &str, driver: &str| {
            let file = Path::new(&machine.texts[2]).join(format!("{name}.json"));
            std::fs::write(file, format!("{{\"driver\": \"{driver}\"}}")).unwrap();
        };
        network("podman", "bridge");
        machine.with(|places| remove(&[], places)).unwrap();
        network("lab", "byway");
        let refused = machine.with(|places| remove(&[], places)).unwrap_err();
        assert_eq!(refused.hint, "podman network rm lab");
    }

    #[test]
    fn a_user_has_the_plugin_in_its_home_and_a_configuration_of_its_own() {
        let machine = Machine::new();
        let home = machine.dir.path().join("home/netavark");
        let own = home.to_string_lossy().into_owned();
        let as_user = |places: Places<'_>| {
            install(
                &[],
                Places {
                    dir: Some(&own),
                    ..places
                },
            )
        };
        assert!(machine.with(as_user).unwrap().changed);
        assert!(home.join(NAME).is_symlink());
        let told = std::fs::read_to_string(machine.own()).unwrap();
        assert!(list(&told).unwrap().contains(&own), "{told}");
        assert!(!machine.with(as_user).unwrap().changed);
        let gone = |places: Places<'_>| {
            remove(
                &[],
                Places {
                    dir: Some(&own),
                    ..places
                },
            )
        };
        assert!(machine.with(gone).unwrap().changed);
        assert!(!home.join(NAME).exists() && !machine.own().exists());
    }

    #[test]
    fn a_directory_of_another_name_is_refused() {
        let machine = Machine::new();
        let other = [machine.dir.path().join("plugins")];
        let refused = machine.with(|places| install(&other, places)).unwrap_err();
        assert!(refused.message.contains("called netavark"), "{refused}");
        let two = [machine.dir(), machine.dir()].concat();
        assert_eq!(
            machine
                .with(|places| install(&two, places))
                .unwrap_err()
                .kind,
            ErrorKind::Usage
        );
    }
}
