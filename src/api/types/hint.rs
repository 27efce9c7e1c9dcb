//! The words for what may be tried after an error: command lines of `byway` and of other programs, as the API's answers and
//! the command line show them (`"hint"`, `  try:  …`).

use crate::model::error::Hint;

impl From<Hint> for String {
    fn from(hint: Hint) -> String {
        match hint {
            Hint::TypeMore => {
                "type the beginning of the ID that is shown, or the whole ID".to_owned()
            }
            Hint::NewInvite => {
                "byway invite create SUBNET      (where its owner or an admin is)".to_owned()
            }
            Hint::ListInvites => "byway invite ls".to_owned(),
            Hint::ListSubnets => "byway subnet ls".to_owned(),
            Hint::Found => "byway create NAME".to_owned(),
            Hint::ShowSubnet(subnet) => format!("byway subnet show {subnet}"),
            Hint::ShowRival(subnet) => {
                format!("byway subnet show {subnet}      (a machine can be in one of the two only)")
            }
            Hint::ShowNamesake(subnet) => {
                format!("byway subnet show {subnet}      (or create one with another name)")
            }
            Hint::ShowRoute(route) => {
                let six = if route.addr().is_ipv6() { " -6" } else { "" };
                format!("ip{six} route show {route}      (a machine can have one of the two only)")
            }
            Hint::FoundWithPool4 => "byway create NAME --cidr4 CIDR".to_owned(),
            Hint::FoundLarger => {
                "byway create NAME --cidr4 CIDR --block4 LEN      (a larger pool or smaller blocks)"
                    .to_owned()
            }
            Hint::FoundWithFree4 { name, free } => {
                format!("byway create {name} --cidr4 auto      ({free} is free)")
            }
            Hint::FoundWithAny6(name) => format!("byway create {name} --cidr6 auto"),
            Hint::Join(subnet) => format!("byway join {subnet}"),
            Hint::JoinAs(target) => {
                format!("byway join {target} --as OTHER      (its name on this machine)")
            }
            Hint::JoinNamed(subnet) => {
                format!("byway join {subnet} --name OTHER      (on the machine that asks)")
            }
            Hint::JoinAllowing { target, flags } => format!("byway join {target} {flags}"),
            Hint::AskInviter => "ask who invited you; no option allows it".to_owned(),
            Hint::AskForPrefix => "ask the owner for a subnet with another prefix".to_owned(),
            Hint::AskForPrefixAnyway => {
                "ask the owner for a subnet with another prefix: no option allows this".to_owned()
            }
            Hint::AskForAddress => "ask the owner, or name no address".to_owned(),
            Hint::SetClock => "timedatectl set-ntp true      (then the same again)".to_owned(),
            Hint::SetClockAndJoin => "timedatectl set-ntp true      (then join again)".to_owned(),
            Hint::ListMembers(subnet) => format!("byway member ls {subnet}"),
            Hint::ListRequests(subnet) => format!("byway member requests {subnet}"),
            Hint::MakeAdmin(subnet) => {
                format!("byway member role {subnet} MEMBER admin      (on the owner)")
            }
            Hint::ApproveThere { subnet, joiner, by } => {
                format!("byway member approve {subnet} {joiner}      (on {by}, or on the owner)")
            }
            Hint::Destroy(subnet) => {
                format!("byway destroy {subnet}      (ends the subnet for everyone)")
            }
            Hint::Leave(subnet) => format!("byway leave {subnet}"),
            Hint::ListLeases(subnet) => format!("byway lease ls {subnet}"),
            Hint::AddLease => {
                // Without --member it would be leased to the machine where it is typed.
                "byway lease add SUBNET PREFIX --member MEMBER      (on the owner or an admin; MEMBER is this machine)"
                    .to_owned()
            }
            Hint::ListWorkloads => "byway workload ls".to_owned(),
            Hint::ListWorkloadsThenName => {
                "byway workload ls      (then the same with --subnet SUBNET)".to_owned()
            }
            Hint::EndWorkload => "byway workload ls      (end one, or have root name a larger number in [workloads] users)"
                .to_owned(),
            Hint::AttachNamed {
                kind,
                target,
                subnet,
            } => {
                format!("byway attach {kind} {target} --subnet {subnet} --name OTHER")
            }
            Hint::Detach { workload, subnet } => {
                format!("byway detach {workload} --subnet {subnet}")
            }
            Hint::ListNames(subnet) => format!("byway dns ls {subnet}"),
            Hint::ReleaseName { subnet, name } => {
                format!("byway dns release {subnet} {name} --member MEMBER")
            }
            Hint::ListMaps => "byway map ls".to_owned(),
            Hint::RemoveMap { subnet, map } => {
                format!("byway map rm {subnet} {map}      (it goes whole)")
            }
            Hint::ListPeers => "byway peer ls".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{Name, SubnetId};

    #[test]
    fn a_hint_is_a_line_with_its_values_in_it() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let id = SubnetId([7; 16]);
        let route = |text: &str| Hint::ShowRoute(text.parse().unwrap());
        for (hint, line) in [
            (
                route("10.0.0.0/8"),
                "ip route show 10.0.0.0/8      (a machine can have one of the two only)".to_owned(),
            ),
            (
                route("fd00::/8"),
                "ip -6 route show fd00::/8      (a machine can have one of the two only)"
                    .to_owned(),
            ),
            (
                Hint::FoundWithFree4 {
                    name: name("lab"),
                    free: "10.78.0.0/16".parse().unwrap(),
                },
                "byway create lab --cidr4 auto      (10.78.0.0/16 is free)".to_owned(),
            ),
            (
                Hint::AddLease,
                "byway lease add SUBNET PREFIX --member MEMBER      (on the owner or an admin; MEMBER is this machine)"
                    .to_owned(),
            ),
            (
                Hint::JoinNamed(id),
                format!("byway join {id} --name OTHER      (on the machine that asks)"),
            ),
            (
                Hint::JoinAllowing {
                    target: "INVITE".into(),
                    flags: "--allow-domain example.org".into(),
                },
                "byway join INVITE --allow-domain example.org".to_owned(),
            ),
            (
                Hint::ApproveThere {
                    subnet: name("lab"),
                    joiner: "12D3KooWabcd".into(),
                    by: "anna".into(),
                },
                "byway member approve lab 12D3KooWabcd      (on anna, or on the owner)".to_owned(),
            ),
            (
                Hint::AttachNamed {
                    kind: "docker".into(),
                    target: "web".into(),
                    subnet: name("lab"),
                },
                "byway attach docker web --subnet lab --name OTHER".to_owned(),
            ),
            (
                Hint::Detach {
                    workload: name("web"),
                    subnet: name("lab"),
                },
                "byway detach web --subnet lab".to_owned(),
            ),
            (
                Hint::ReleaseName {
                    subnet: name("lab"),
                    name: "www".into(),
                },
                "byway dns release lab www --member MEMBER".to_owned(),
            ),
            (
                Hint::RemoveMap {
                    subnet: name("lab"),
                    map: name("tcp-8000-8010"),
                },
                "byway map rm lab tcp-8000-8010      (it goes whole)".to_owned(),
            ),
            (
                Hint::SetClock,
                "timedatectl set-ntp true      (then the same again)".to_owned(),
            ),
        ] {
            assert_eq!(String::from(hint), line);
        }
    }
}
