//! What we ask of the firewalls of others on this machine, and what is said where one of them stands in the way.
//!
//! An accept in our own table cannot overrule a drop in anybody else's chain. So where Docker or firewalld offers a place
//! for rules of others, ours are there too: one each for what comes in and what goes out on a link of ours, whatever
//! workloads and port maps there are. They open nothing: what may pass our links is judged by our own table, which drops
//! the rest (`host/nft/chains.nft`, chains `towards`, `leaving` and `machine`).

use std::collections::BTreeSet;

use super::{Family, HostConfig};

/// The chain that Docker leaves to others. Docker calls it before its own rules and never empties it.
pub const DOCKER_USER: &str = "DOCKER-USER";
/// The beginning of the names of workloads' links.
const WORKLOADS: &str = "bwv";

/// The firewalls of others in whose places for foreign rules we put ours: `[firewall] integrate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integrate {
    /// Whether rules are put in Docker's chain `DOCKER-USER`.
    pub docker: bool,
    /// Whether links are put in a zone of firewalld.
    pub firewalld: bool,
    /// Whether rules are put among those of ufw, which keeps them on disk.
    pub ufw: bool,
}

impl Integrate {
    /// The choice that touches nobody's rules.
    pub const NONE: Integrate = Integrate {
        docker: false,
        firewalld: false,
        ufw: false,
    };
    /// The choice of those whose places do not outlive a boot.
    pub const DEFAULT: Integrate = Integrate {
        docker: true,
        firewalld: true,
        ufw: false,
    };
}

/// Our links as iptables, ufw and firewalld write them: a TUN by its name, the links of all workloads as `bwv+`, so that
/// a workload that comes or goes changes nobody's rules.
pub fn patterns(desired: &HostConfig) -> BTreeSet<String> {
    let workloads = desired
        .workloads
        .iter()
        .map(|w| match w.host_link.starts_with(WORKLOADS) {
            true => format!("{WORKLOADS}+"),
            false => w.host_link.clone(),
        });
    desired
        .tuns
        .iter()
        .map(|t| t.name.clone())
        .chain(workloads)
        .collect()
}

/// A pattern as nft writes it.
fn wildcard(pattern: &str) -> String {
    pattern
        .strip_suffix('+')
        .map_or_else(|| pattern.to_owned(), |prefix| format!("{prefix}*"))
}

/// The mark of a rule of ours in a chain of others.
pub fn mark(instance: &str) -> String {
    format!("byway:{instance}")
}

/// A line of `iptables -S` in words, without the quotes that some versions print.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace()
        .map(|word| word.trim_matches('"'))
        .collect()
}

fn has_pair(words: &[&str], first: &str, second: impl Fn(&str) -> bool) -> bool {
    words
        .windows(2)
        .any(|pair| matches!(pair, [a, b] if *a == first && second(b)))
}

/// What iptables-restore is to do (`--noflush`) so that `chain`, printed by `iptables -S`, has exactly the rules of this
/// instance that `wanted` needs; none where it has them.
///
/// Rules of ours stand behind those of the administrator and before the first rule that ends every packet's way through
/// the chain (Docker's own last one returns).
pub fn chain_changes(
    instance: &str,
    chain: &str,
    wanted: &BTreeSet<String>,
    listed: &str,
) -> Option<String> {
    let mark = mark(instance);
    let rule =
        |side: &str, link: &str| format!("{side} {link} -m comment --comment {mark} -j ACCEPT");
    let target: Vec<String> = wanted
        .iter()
        .flat_map(|link| ["-i", "-o"].map(|side| rule(side, link)))
        .collect();
    let head = format!("-A {chain} ");
    let rules: Vec<Vec<&str>> = listed
        .lines()
        .filter_map(|line| line.strip_prefix(&head))
        .map(words)
        .collect();
    let ours = |rule: &Vec<&str>| has_pair(rule, "--comment", |comment| comment == mark);
    let ends = |rule: &Vec<&str>| matches!(rule.as_slice(), ["-j", ..]);
    let end = rules.iter().position(ends).unwrap_or(rules.len());
    let found: Vec<String> = rules
        .iter()
        .filter(|rule| ours(rule))
        .map(|rule| rule.join(" "))
        .collect();
    let last = rules.iter().rposition(ours);
    if found == target && last.is_none_or(|last| last < end) {
        return None;
    }
    let mut text = "*filter\n".to_owned();
    found
        .iter()
        .for_each(|rule| text.push_str(&format!("-D {chain} {rule}\n")));
    let place = rules
        .iter()
        .filter(|rule| !ours(rule))
        .position(ends)
        .map(|before| before + 1);
    for (at, rule) in target.iter().enumerate() {
        match place {
            Some(place) => text.push_str(&format!("-I {chain} {} {rule}\n", place + at)),
            None => text.push_str(&format!("-A {chain} {rule}\n")),
        }
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// Where packets of ours may be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// On their way through this machine (`forward`).
    Forward,
    /// On their way into this machine itself (`input`).
    Input,
}

/// A base chain that is not ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChain {
    /// The family of its table: `ip`, `ip6` or `inet`.
    pub family: String,
    /// Name of its table.
    pub table: String,
    /// Name of the chain.
    pub name: String,
    /// The hook of netfilter that the chain is attached to.
    pub hook: Hook,
    /// Whether what no rule of it accepts is dropped.
    pub policy_drops: bool,
    /// Whether a rule of it drops, or leads to rules that may.
    pub rules_drop: bool,
    /// The rule that drops, as its program prints it, where it is known: itself, or in a chain that this one leads to.
    pub rule: Option<String>,
    /// Whether the kernel has it in the tables of before nftables.
    pub legacy: bool,
    /// Whether ufw made what is in it.
    pub ufw: bool,
    /// Whether `DOCKER-USER` is called from it.
    pub docker: bool,
    /// Whether our own rules are in it already.
    pub integrated: bool,
}

impl ForeignChain {
    /// Whether packets of the family come through it.
    fn sees(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.family != "ip6",
            Family::V6 => self.family != "ip",
        }
    }

    /// The chain as people are shown it: `inet filter forward`.
    fn path(&self) -> String {
        format!("{} {} {}", self.family, self.table, self.name)
    }

    /// The chain with what of it drops: its policy, or a rule where one is known.
    fn culprit(&self) -> String {
        match &self.rule {
            _ if self.policy_drops => format!("{} (policy drop)", self.path()),
            Some(rule) => format!("{} (rule: {rule})", self.path()),
            None => self.path(),
        }
    }

    /// The program that made it, if iptables did.
    fn iptables(&self) -> &'static str {
        match (self.family.as_str(), self.legacy) {
            ("ip", false) => "iptables",
            ("ip", true) => "iptables-legacy",
            (_, false) => "ip6tables",
            (_, true) => "ip6tables-legacy",
        }
    }

    /// The command that lets our links through, in the tool that owns the chain. Enough for this chain, and it opens
    /// nothing that our own table does not judge.
    fn remedy(&self, patterns: &BTreeSet<String>) -> String {
        let each = |command: &dyn Fn(&String) -> Vec<String>| {
            patterns
                .iter()
                .flat_map(command)
                .collect::<Vec<_>>()
                .join(" && ")
        };
        let sides: &[&str] = if self.hook == Hook::Forward {
            &["-i", "-o"]
        } else {
            &["-i"]
        };
        if self.table == "firewalld" {
            let links: Vec<String> = patterns
                .iter()
                .map(|link| format!("--change-interface={link}"))
                .collect();
            return format!("firewall-cmd --zone=trusted {}", links.join(" "));
        }
        if self.ufw {
            return match self.hook {
                Hook::Forward => each(&|link| {
                    ["in", "out"]
                        .map(|side| format!("ufw route allow {side} on {link}"))
                        .to_vec()
                }),
                Hook::Input => each(&|link| vec![format!("ufw allow in on {link}")]),
            };
        }
        // Chains that iptables made bear the names of its own.
        if self.table == "filter"
            && self.family != "inet"
            && ["FORWARD", "INPUT"].contains(&self.name.as_str())
        {
            let program = self.iptables();
            let chain = if self.docker { DOCKER_USER } else { &self.name };
            return each(&|link| {
                sides
                    .iter()
                    .map(|side| format!("{program} -I {chain} {side} {link} -j ACCEPT"))
                    .collect()
            });
        }
        let links: Vec<String> = patterns
            .iter()
            .map(|link| format!("\"{}\"", wildcard(link)))
            .collect();
        let links = links.join(", ");
        let rule = |side: &&str| {
            let name = if *side == "-i" { "iifname" } else { "oifname" };
            format!(
                "nft insert rule {} {name} {{ {links} }} accept",
                self.path()
            )
        };
        sides.iter().map(rule).collect::<Vec<_>>().join(" && ")
    }
}

/// Packets of ours that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stopped {
    /// The hook that the packets did not pass.
    pub hook: Hook,
    /// The family of the packets.
    pub family: Family,
    /// The kinds of packets, in words: `from workloads to members`.
    pub what: BTreeSet<String>,
}

/// A chain that stops packets of ours, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// The hook at which packets are stopped.
    pub hook: Hook,
    /// The families of the packets that are stopped.
    pub families: BTreeSet<Family>,
    /// What is stopped, and by which chain, in words.
    pub message: String,
    /// The command that lets the packets pass, as it is typed.
    pub remedy: String,
}

/// Which of the chains may be the ones that stopped it: those that drop what they do not accept; where there is none,
/// those with rules that drop. One that has our rules already is the last to be suspected.
fn suspects<'a>(chains: &'a [ForeignChain], stopped: &Stopped) -> Vec<&'a ForeignChain> {
    let there: Vec<&ForeignChain> = chains
        .iter()
        .filter(|c| c.hook == stopped.hook && c.sees(stopped.family))
        .collect();
    let strict = |c: &&ForeignChain| c.policy_drops;
    let loose = |c: &&ForeignChain| c.rules_drop;
    let tests: [&dyn Fn(&&ForeignChain) -> bool; 4] = [
        &|c| strict(c) && !c.integrated,
        &|c| loose(c) && !c.integrated,
        &strict,
        &loose,
    ];
    let found = |test: &&dyn Fn(&&ForeignChain) -> bool| {
        there
            .iter()
            .copied()
            .filter(|c| test(c))
            .collect::<Vec<_>>()
    };
    tests
        .iter()
        .map(found)
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// What one chain is blamed for.
struct Blame {
    chain: Option<ForeignChain>,
    hook: Hook,
    families: BTreeSet<Family>,
    what: BTreeSet<String>,
}

impl Blame {
    fn obstacle(self, patterns: &BTreeSet<String>) -> Obstacle {
        let name = |family: &Family| {
            if *family == Family::V4 {
                "IPv4"
            } else {
                "IPv6"
            }
        };
        let families: Vec<&str> = self.families.iter().map(name).collect();
        let what: Vec<String> = self.what.into_iter().collect();
        let (who, remedy) = match &self.chain {
            Some(chain) => (chain.culprit(), chain.remedy(patterns)),
            None => (
                "a rule of another program".to_owned(),
                "nft list ruleset".to_owned(),
            ),
        };
        let message = format!("{who} drops {} {}", families.join(" and "), what.join(", "));
        Obstacle {
            hook: self.hook,
            families: self.families,
            message,
            remedy,
        }
    }
}

/// What there is to say: one finding for each hook and chain; with its remedies obeyed, everything passes.
pub fn obstacles(
    patterns: &BTreeSet<String>,
    chains: &[ForeignChain],
    stopped: &[Stopped],
) -> Vec<Obstacle> {
    let mut blames: Vec<Blame> = Vec::new();
    for one in stopped {
        let suspects = suspects(chains, one);
        let unknown = suspects.is_empty().then_some(None);
        for chain in suspects.into_iter().cloned().map(Some).chain(unknown) {
            match blames
                .iter_mut()
                .find(|blame| (&blame.chain, blame.hook) == (&chain, one.hook))
            {
                Some(blame) => {
                    blame.families.insert(one.family);
                    blame.what.extend(one.what.iter().cloned());
                }
                None => {
                    let (families, what) = ([one.family].into(), one.what.clone());
                    blames.push(Blame {
                        chain,
                        hook: one.hook,
                        families,
                        what,
                    });
                }
            }
        }
    }
    let mut found: Vec<Obstacle> = Vec::new();
    for obstacle in blames.into_iter().map(|blame| blame.obstacle(patterns)) {
        // One command of ufw is for both families.
        match found
            .iter_mut()
            .find(|known| (known.hook, &known.remedy) == (obstacle.hook, &obstacle.remedy))
        {
            Some(known) => {
                known.families.extend(obstacle.families);
                known.message = format!("{}; {}", known.message, obstacle.message);
            }
            None => found.push(obstacle),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "-m comment --comment byway:01234567 -j ACCEPT";

    fn links(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    /// Does to a listing what iptables-restore does.
    fn restored(listed: &str, changes: &str) -> String {
        let mut lines: Vec<String> = listed.lines().map(ToOwned::to_owned).collect();
        let head = "DOCKER-USER ";
        for line in changes.lines() {
            if let Some(rule) = line.strip_prefix("-D ") {
                let bare = |l: &String| l.replace('"', "") == format!("-A {rule}");
                let at = lines
                    .iter()
                    .position(bare)
                    .expect("only what is there is deleted");
                lines.remove(at);
            } else if let Some(rule) = line.strip_prefix("-A ") {
                lines.push(format!("-A {rule}"));
            } else if let Some(rule) = line.strip_prefix("-I ").and_then(|l| l.strip_prefix(head)) {
                let (place, rule) = rule.split_once(' ').unwrap();
                // The first line declares the chain.
                lines.insert(place.parse::<usize>().unwrap(), format!("-A {head}{rule}"));
            }
        }
        lines.join("\n")
    }

    #[test]
    fn our_rules_stand_between_those_of_the_administrator_and_the_end() {
        let wanted = links(&["bw-lab", "bwv+"]);
        let theirs = "-N DOCKER-USER\n-A DOCKER-USER -i eth0 -s 198.51.100.0/24 -j DROP\n-A DOCKER-USER -j RETURN";
        let all: String = ["-i bw-lab", "-o bw-lab", "-i bwv+", "-o bwv+"]
            .iter()
            .map(|side| format!("-A DOCKER-USER {side} {MARK}\n"))
            .collect();
        let quoted = all.replace("byway:01234567", "\"byway:01234567\"");
        let place = |ours: &str| {
            theirs.replace(
                "-A DOCKER-USER -j RETURN",
                &format!("{ours}-A DOCKER-USER -j RETURN"),
            )
        };
        for before in [
            theirs.to_owned(),
            // Behind the end, as somebody else's `-I` of the end leaves them; half of them; twice; one too many.
            format!("{theirs}\n{all}").trim_end().to_owned(),
            place(&format!("-A DOCKER-USER -i bw-lab {MARK}\n")),
            place(&format!("{all}{all}")),
            place(&format!("{quoted}-A DOCKER-USER -i bw-old {MARK}\n")),
        ] {
            let changes = chain_changes("01234567", DOCKER_USER, &wanted, &before).expect(&before);
            assert_eq!(
                restored(&before, &changes),
                place(&all),
                "{before}\n{changes}"
            );
        }
        assert_eq!(
            chain_changes("01234567", DOCKER_USER, &wanted, &place(&quoted)),
            None
        );
        // None wanted: exactly theirs is left, and what another daemon marked.
        let other = place(&format!("{quoted}{}", all.replace("01234567", "89abcdef")));
        let changes = chain_changes("01234567", DOCKER_USER, &BTreeSet::new(), &other).unwrap();
        assert_eq!(
            restored(&other, &changes),
            place(&all.replace("01234567", "89abcdef"))
        );
        assert_eq!(
            chain_changes("01234567", DOCKER_USER, &BTreeSet::new(), theirs),
            None
        );
        // A chain without an end.
        let changes = chain_changes("01234567", DOCKER_USER, &wanted, "-N DOCKER-USER").unwrap();
        assert_eq!(
            restored("-N DOCKER-USER", &changes),
            format!("-N DOCKER-USER\n{}", all.trim_end())
        );
    }

    fn chain(family: &str, table: &str, name: &str, hook: Hook) -> ForeignChain {
        ForeignChain {
            family: family.to_owned(),
            table: table.to_owned(),
            name: name.to_owned(),
            hook,
            policy_drops: true,
            rules_drop: false,
            rule: None,
            legacy: false,
            ufw: false,
            docker: false,
            integrated: false,
        }
    }

    #[test]
    fn the_remedy_is_said_in_the_tool_that_owns_the_chain() {
        let links = links(&["bw-lab", "bwv+"]);
        let says = |chain: ForeignChain| chain.remedy(&links);
        assert_eq!(
            says(chain("inet", "filter", "forward", Hook::Forward)),
            "nft insert rule inet filter forward iifname { \"bw-lab\", \"bwv*\" } accept && \
             nft insert rule inet filter forward oifname { \"bw-lab\", \"bwv*\" } accept"
        );
        assert_eq!(
            says(chain("ip6", "filter", "INPUT", Hook::Input)),
            "ip6tables -I INPUT -i bw-lab -j ACCEPT && ip6tables -I INPUT -i bwv+ -j ACCEPT"
        );
        let docker = ForeignChain {
            docker: true,
            ..chain("ip", "filter", "FORWARD", Hook::Forward)
        };
        assert_eq!(
            says(docker),
            "iptables -I DOCKER-USER -i bw-lab -j ACCEPT && iptables -I DOCKER-USER -o bw-lab -j ACCEPT && \
             iptables -I DOCKER-USER -i bwv+ -j ACCEPT && iptables -I DOCKER-USER -o bwv+ -j ACCEPT"
        );
        let legacy = ForeignChain {
            legacy: true,
            ..chain("ip", "filter", "INPUT", Hook::Input)
        };
        assert!(says(legacy).starts_with("iptables-legacy -I INPUT -i bw-lab"));
        let ufw = ForeignChain {
            ufw: true,
            ..chain("ip", "filter", "FORWARD", Hook::Forward)
        };
        assert!(
            says(ufw)
                .starts_with("ufw route allow in on bw-lab && ufw route allow out on bw-lab && ")
        );
        assert_eq!(
            says(chain("inet", "firewalld", "filter_FORWARD", Hook::Forward)),
            "firewall-cmd --zone=trusted --change-interface=bw-lab --change-interface=bwv+"
        );
    }

    #[test]
    fn who_drops_by_policy_is_suspected_first_and_who_has_our_rules_last() {
        let stopped = |family| Stopped {
            hook: Hook::Forward,
            family,
            what: links(&["between workloads"]),
        };
        let docker = chain("ip", "filter", "FORWARD", Hook::Forward);
        let other = chain("inet", "fw", "fwd", Hook::Forward);
        let quiet = ForeignChain {
            policy_drops: false,
            rules_drop: true,
            rule: Some("tcp dport 80 drop".to_owned()),
            ..chain("inet", "z", "f", Hook::Forward)
        };
        let input = chain("inet", "fw", "in", Hook::Input);
        let names = |chains: &[ForeignChain], families: &[Family]| {
            let stopped: Vec<Stopped> = families.iter().copied().map(stopped).collect();
            obstacles(&links(&["bw-lab"]), chains, &stopped)
                .into_iter()
                .map(|f| f.message)
                .collect::<Vec<_>>()
        };
        let all = [docker.clone(), other.clone(), quiet.clone(), input];
        assert_eq!(
            names(&all, &[Family::V4, Family::V6]),
            [
                "ip filter FORWARD (policy drop) drops IPv4 between workloads",
                "inet fw fwd (policy drop) drops IPv4 and IPv6 between workloads"
            ]
        );
        let ours = ForeignChain {
            integrated: true,
            ..docker
        };
        assert_eq!(
            names(&[ours.clone(), other], &[Family::V4]),
            ["inet fw fwd (policy drop) drops IPv4 between workloads"]
        );
        assert_eq!(
            names(&[ours.clone(), quiet], &[Family::V4]),
            ["inet z f (rule: tcp dport 80 drop) drops IPv4 between workloads"]
        );
        assert_eq!(
            names(&[ours], &[Family::V4]),
            ["ip filter FORWARD (policy drop) drops IPv4 between workloads"]
        );
        assert_eq!(
            names(&[], &[Family::V6]),
            ["a rule of another program drops IPv6 between workloads"]
        );
        // One command for two chains is said once.
        let ufw = ["ip", "ip6"].map(|f| ForeignChain {
            ufw: true,
            ..chain(f, "filter", "FORWARD", Hook::Forward)
        });
        let once = names(&ufw, &[Family::V4, Family::V6]);
        assert!(
            once.len() == 1 && once[0].contains("IPv4") && once[0].contains("IPv6"),
            "{once:?}"
        );
    }
}
