//! Daemons that live on this machine, by what the kernel keeps only as long as they do.
//!
//! A TUN of ours is not persistent: it is there as long as the process that opened it. So a link with our mark of that role
//! tells that its daemon lives, whatever its socket and its state directory are. So does a lock on a state directory.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::netlink::Netlink;

/// A process, with what a person knows it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The process ID, as seen from here.
    pub pid: u32,
    command: String,
    /// The unit of systemd it is the daemon of.
    unit: Option<String>,
}

impl Process {
    /// What /proc tells of the process.
    pub fn of(pid: u32) -> Process {
        let process = Path::new("/proc").join(pid.to_string());
        let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let unit = std::fs::read_to_string(process.join("cgroup"))
            .ok()
            .and_then(|text| unit(&text));
        Process {
            pid,
            command: words.trim_end().chars().take(300).collect(),
            unit,
        }
    }

    /// The command that ends it. systemd would start again what is only killed.
    pub fn stop(&self) -> String {
        self.unit.as_ref().map_or_else(
            || format!("kill {}", self.pid),
            |unit| format!("systemctl stop {unit}"),
        )
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// The unit that /proc/PID/cgroup names. Only one of ours: a daemon that was typed is in the unit of a login, which is
/// nobody's to stop.
fn unit(cgroup: &str) -> Option<String> {
    let name = cgroup
        .lines()
        .find_map(|line| line.rsplit('/').next()?.strip_suffix(".service"))?;
    name.starts_with("byway").then(|| name.to_owned())
}

/// A daemon that carries packets in this network namespace.
#[derive(Debug)]
pub struct Living {
    /// The process of the daemon; none where it cannot be seen from here.
    pub process: Option<Process>,
    /// Names of the links it has made.
    pub links: Vec<String>,
}

impl fmt::Display for Living {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some(process) => write!(f, "{process}")?,
            None => write!(f, "a process")?,
        }
        let links = if let [_] = *self.links {
            "link"
        } else {
            "links"
        };
        write!(f, " with {links} {}", self.links.join(", "))
    }
}

/// The daemons of this network namespace that carry packets, of one instance or of all.
///
/// # Errors
/// When netlink cannot be used.
pub async fn living(instance: Option<&str>) -> anyhow::Result<Vec<Living>> {
    let links = Netlink::open()?.links().await?;
    let mut all: Vec<Living> = Vec::new();
    for link in links.into_values() {
        let mut mark = link.link.alias.split(':');
        let (ours, of, role) = (mark.next() == Some("byway"), mark.next(), mark.next());
        if ours && role == Some("tun") && instance.is_none_or(|wanted| of == Some(wanted)) {
            let process = holder(&link.name);
            match all
                .iter_mut()
                .find(|living| process.is_some() && living.process == process)
            {
                Some(living) => living.links.push(link.name),
                None => all.push(Living {
                    process,
                    links: vec![link.name],
                }),
            }
        }
    }
    all.iter_mut().for_each(|living| living.links.sort());
    all.sort_by(|a, b| a.links.cmp(&b.links));
    Ok(all)
}

/// The process in this network namespace that has a TUN open.
fn holder(link: &str) -> Option<Process> {
    let own = std::fs::read_link("/proc/self/ns/net").ok()?;
    // What `tun_chr_show_fdinfo` of the kernel writes.
    let line = format!("iff:\t{link}");
    let holds = |process: &Path| {
        let open = std::fs::read_dir(process.join("fdinfo"))
            .into_iter()
            .flatten()
            .flatten();
        open.filter_map(|fd| std::fs::read_to_string(fd.path()).ok())
            .any(|text| text.lines().any(|l| l == line))
    };
    process(|process| {
        std::fs::read_link(process.join("ns/net")).is_ok_and(|ns| ns == own) && holds(process)
    })
}

/// The process that has a state directory locked.
pub fn owner(dir: &Path) -> Option<Process> {
    let wanted = std::fs::metadata(dir).ok().map(|m| (m.dev(), m.ino()))?;
    let is_dir = |fd: &Path| std::fs::metadata(fd).is_ok_and(|m| (m.dev(), m.ino()) == wanted);
    // Who only has it open, such as a shell that stands there, has no lock.
    let locks =
        |fdinfo: &Path| std::fs::read_to_string(fdinfo).is_ok_and(|text| text.contains("FLOCK"));
    process(|process| {
        let open = std::fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        open.into_iter()
            .any(|fd| is_dir(&fd.path()) && locks(&process.join("fdinfo").join(fd.file_name())))
    })
}

/// The first process whose directory in /proc is the wanted one.
fn process(wanted: impl Fn(&Path) -> bool) -> Option<Process> {
    let pid = |entry: std::fs::DirEntry| {
        entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
    };
    let mut all = std::fs::read_dir("/proc").ok()?.flatten();
    all.find_map(|entry| wanted(&entry.path()).then(|| pid(entry)).flatten())
        .map(Process::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_of_a_unit_is_stopped_by_its_unit_and_a_typed_one_by_its_number() {
        let of = |cgroup: &str| {
            Process {
                pid: 7,
                command: String::new(),
                unit: unit(cgroup),
            }
            .stop()
        };
        assert_eq!(
            of("0::/system.slice/byway.service\n"),
            "systemctl stop byway"
        );
        assert_eq!(
            of("1:name=systemd:/system.slice/byway-two.service\n0::/\n"),
            "systemctl stop byway-two"
        );
        // Stopping this one would end the logins of everybody.
        assert_eq!(of("0::/system.slice/ssh.service\n"), "kill 7");
        assert_eq!(
            of("0::/user.slice/user-0.slice/session-3.scope\n"),
            "kill 7"
        );
    }

    #[test]
    fn who_has_a_directory_locked_is_found_and_who_only_has_it_open_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(owner(dir.path()), None);
        open.lock().unwrap();
        assert_eq!(owner(dir.path()).map(|p| p.pid), Some(std::process::id()));
    }
}
