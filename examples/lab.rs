//! The programs of the laboratory (relay, flood, capture, …) by themselves, for `scripts/bench`: `lab NAME ARGUMENTS…`.

#[path = "../tests/netns/tool/mod.rs"]
mod tool;

fn main() -> std::process::ExitCode {
    tool::main(std::env::args().skip(1))
}
