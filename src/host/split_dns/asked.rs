//! Whom this machine's programs ask for names: `/etc/resolv.conf` and `/etc/nsswitch.conf`, read and never written.

use std::net::IpAddr;
use std::path::Path;

use super::super::resolver;

/// How the C library looks names up.
const SWITCH: &str = "/etc/nsswitch.conf";

/// What the files of the C library say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// The name servers of the resolver file, in order.
    pub servers: Vec<IpAddr>,
    /// Whether systemd-resolved is asked by the C library itself, whatever the resolver file says.
    pub by_library: bool,
}

impl Asked {
    /// Reads the files; one that cannot be read says nothing.
    pub fn now() -> Asked {
        let file = resolver::of_host().unwrap_or_default();
        let switch = std::fs::read_to_string(Path::new(SWITCH)).unwrap_or_default();
        Asked {
            servers: servers(&String::from_utf8_lossy(&file)),
            by_library: has_resolve(&switch),
        }
    }

    /// Whether the first to be asked is on this machine: then only a test can tell what it does with our zones. One elsewhere
    /// knows nothing of them, and must not hear of them either.
    pub fn is_here(&self, own: impl Fn(&IpAddr) -> bool) -> bool {
        let first = self.servers.first();
        // Without a line the C library asks this machine.
        self.by_library || first.is_none_or(|ip| ip.is_loopback() || own(ip))
    }
}

fn servers(file: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let word = (words.next() == Some("nameserver")).then(|| words.next())??;
        word.split('%').next()?.parse().ok()
    };
    file.lines().filter_map(server).collect()
}

/// Whether the line of hosts names the module that asks systemd-resolved.
fn has_resolve(switch: &str) -> bool {
    let hosts = switch
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("hosts:"));
    hosts.is_some_and(|line| line.split_whitespace().any(|word| word == "resolve"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_server_decides_whether_this_machine_is_asked() {
        let asked = |file: &str, switch: &str| Asked {
            servers: servers(file),
            by_library: has_resolve(switch),
        };
        let own: IpAddr = "10.77.1.1".parse().unwrap();
        let here = |asked: Asked| asked.is_here(|ip| *ip == own);
        let plain = "hosts:          files dns # resolve\nnetworks: resolve\n";
        let plain = plain.replace(" # resolve", "");
        assert!(!here(asked(
            "search x\nnameserver 192.0.2.1\nnameserver 127.0.0.1\n",
            &plain
        )));
        assert!(here(asked(
            "# nameserver 192.0.2.1\nnameserver 127.0.0.53\n",
            &plain
        )));
        assert!(here(asked("nameserver 10.77.1.1\n", &plain)));
        assert!(here(asked("nameserver ::1%lo\n", "")));
        assert!(here(asked("", "")));
        let library = "hosts: mymachines resolve [!UNAVAIL=return] files dns\n";
        assert!(here(asked("nameserver 192.0.2.1\n", library)));
    }
}
