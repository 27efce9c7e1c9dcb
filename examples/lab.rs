//! The programs of the laboratory (relay, NAT, flood, capture, …) by themselves, for `scripts/bench`: `lab NAME ARGUMENTS…`.

#[expect(
    dead_code,
    reason = "the NAT is shared with the tests, which use more of it"
)]
#[path = "../tests/lab/nat/mod.rs"]
mod nat;
#[path = "../tests/netns/tool/mod.rs"]
mod tool;

fn main() -> std::process::ExitCode {
    tool::main(std::env::args().skip(1))
}
