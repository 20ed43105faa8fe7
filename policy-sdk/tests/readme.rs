//! The plugin in the README is the one that is compiled as the documentation of this crate.

#[test]
fn readme_shows_the_plugin_of_the_documentation() {
    let library = include_str!("../src/lib.rs");
    let readme = include_str!("../../README.md");
    let mut blocks = library.split("//! ```\n");
    let code: String = blocks
        .nth(1)
        .into_iter()
        .flat_map(str::lines)
        .map(|line| line.strip_prefix("//!").unwrap_or(line))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    assert!(code.contains("export_plugin!"), "{code}");
    assert!(readme.contains(&format!("```rust\n{code}```\n")), "README.md should show:\n{code}");
}
