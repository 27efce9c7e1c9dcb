//! Daemons that live on this machine, by what the kernel keeps only as long as they do.
//!
//! A TUN of ours is not persistent: it is there as long as the process that opened it. So a link with our mark of that role
//! tells that its daemon lives, whatever its socket and its state directory are.

use std::path::Path;

use super::netlink::Netlink;

/// The daemons of this network namespace that carry packets, of one instance or of all: what a person knows them by.
///
/// # Errors
/// When netlink cannot be used.
pub async fn living(instance: Option<&str>) -> anyhow::Result<Vec<String>> {
    let links = Netlink::open()?.links().await?;
    let mut all = Vec::new();
    for link in links.into_values() {
        let mut mark = link.link.alias.split(':');
        let (ours, of, role) = (mark.next() == Some("byway"), mark.next(), mark.next());
        if ours && role == Some("tun") && instance.is_none_or(|wanted| of == Some(wanted)) {
            all.push(match holder(&link.name) {
                Some((pid, command)) => format!("process {pid} ({command}) with link {}", link.name),
                None => format!("a process with link {}", link.name),
            });
        }
    }
    all.sort();
    Ok(all)
}

/// The process in this network namespace that has a TUN open, and its command line.
fn holder(link: &str) -> Option<(u32, String)> {
    let own = std::fs::read_link("/proc/self/ns/net").ok()?;
    // What `tun_chr_show_fdinfo` of the kernel writes.
    let line = format!("iff:\t{link}");
    let holds = |process: &Path| {
        let open = std::fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
        open.filter_map(|fd| std::fs::read_to_string(fd.path()).ok()).any(|text| text.lines().any(|l| l == line))
    };
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let process = entry.path();
        if std::fs::read_link(process.join("ns/net")).ok()? != own || !holds(&process) {
            return None;
        }
        let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        Some((pid, words.trim_end().chars().take(300).collect()))
    })
}
