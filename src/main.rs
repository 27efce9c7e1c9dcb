//! The `byway` program.

fn main() {
    println!("byway {}", env!("CARGO_PKG_VERSION"));
}
