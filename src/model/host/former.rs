//! What a resolver file says, as far as it is kept when ours takes its place (`resolv.conf(5)`).

use std::net::IpAddr;

/// Words of one kind that are read; no file in use comes near.
const MOST: usize = 64;

/// A server that is asked, and the link it is asked on where its address needs one (`fe80::1%eth0`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// The address that is asked.
    pub ip: IpAddr,
    /// Name or number of the link, for a link-local address.
    pub zone: Option<String>,
}

/// What a resolver file says (resolv.conf(5)), as far as it matters to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Former {
    /// The nameservers, in the order they are asked.
    pub servers: Vec<Server>,
    /// Domains a short name is looked for in.
    pub search: Vec<String>,
    /// The options as they stand in the file: `ndots:0`, `edns0`.
    pub options: Vec<String>,
}

impl Former {
    /// Reads the text of a file; what makes no sense is left out.
    pub fn parse(text: &str) -> Former {
        let mut former = Former::default();
        for line in text.lines() {
            let mut words = line
                .split_ascii_whitespace()
                .take_while(|word| !word.starts_with(['#', ';']));
            match words.next() {
                Some("nameserver") => former.servers.extend(words.next().and_then(Server::parse)),
                // The last of them counts.
                Some("search") => {
                    former.search = words.filter(is_word).map(str::to_owned).collect()
                }
                Some("domain") => {
                    former.search = words.take(1).filter(is_word).map(str::to_owned).collect()
                }
                Some("options") => former
                    .options
                    .extend(words.filter(is_word).map(str::to_owned)),
                _ => {}
            }
        }
        former.servers.truncate(MOST);
        former.search.truncate(MOST);
        former.options.truncate(MOST);
        former
    }
}

impl Server {
    fn parse(text: &str) -> Option<Server> {
        let (ip, zone) = match text.split_once('%') {
            Some((ip, zone)) => (ip, Some(zone.to_owned()).filter(|zone| !zone.is_empty())),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        (!ip.is_unspecified() && !ip.is_multicast()).then_some(Server { ip, zone })
    }
}

/// A domain or an option that can stand in a file.
fn is_word(word: &&str) -> bool {
    word.len() <= 255 && word.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn servers_search_and_options_are_read_as_the_c_library_does() {
        let text = "# x\ndomain old.example\nsearch a.example b.example # c\nnameserver 192.0.2.1\n \
                    nameserver\t2001:db8::1 trailing\nnameserver fe80::1%eth0\nnameserver 0.0.0.0\nnameserver\n\
                    nameserverx 1.1.1.1\noptions ndots:0 edns0\noptions timeout:1\n";
        let former = Former::parse(text);
        let server = |ip: &str, zone: Option<&str>| Server {
            ip: ip.parse().unwrap(),
            zone: zone.map(str::to_owned),
        };
        let servers = [
            server("192.0.2.1", None),
            server("2001:db8::1", None),
            server("fe80::1", Some("eth0")),
        ];
        assert_eq!(former.servers, servers);
        assert_eq!(former.search, ["a.example", "b.example"]);
        assert_eq!(former.options, ["ndots:0", "edns0", "timeout:1"]);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_word_breaks_a_line(text in "(nameserver |search |options |[ -~\n]){0,80}") {
            let former = Former::parse(&text);
            prop_assert!(former.search.iter().chain(&former.options).all(|w| !w.contains(char::is_whitespace)));
        }
    }
}
