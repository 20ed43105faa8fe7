//! What operators may set, as a page of Markdown: every option of the processes, every field of Weft's own
//! kinds.

use std::fmt::Write as _;

use anyhow::Context as _;
use clap::{Arg, ArgAction, CommandFactory as _};
use serde_json::Value;

/// Commands whose options are told.
const PROCESSES: [&str; 3] = ["hub", "agent", "datapath"];

/// The page.
///
/// # Errors
/// If a definition cannot be read.
pub(crate) fn page() -> anyhow::Result<String> {
    let mut page = String::from(
        "# Settings\n\n`weft reference` writes this page. An option can be given by the variable beside it too.\n",
    );
    let program = crate::Arguments::command();
    for name in PROCESSES {
        let command = program.find_subcommand(name).context("no such process")?;
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        write!(page, "\n## weft {name}\n\n{about}\n\n")?;
        page.push_str("| option | variable | unless set | |\n|---|---|---|---|\n");
        for option in command.get_arguments().filter(|a| !a.is_global_set()) {
            writeln!(page, "{}", row(option))?;
        }
    }
    for definition in weft_hub::definitions() {
        let definition = serde_json::to_value(definition)?;
        let kind = text(&definition["spec"]["names"]["kind"]);
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let about = text(&schema["description"]);
        write!(page, "\n## {kind}\n\n{about}\n\n| field | type | |\n|---|---|---|\n")?;
        fields(&mut page, "spec", &schema["properties"]["spec"]);
    }
    Ok(page)
}

fn row(option: &Arg) -> String {
    let name = option.get_long().unwrap_or_default();
    let values = option.get_value_names().unwrap_or_default().join(" ");
    let takes = matches!(option.get_action(), ArgAction::Set | ArgAction::Append);
    let shown = if takes { format!("--{name} {values}") } else { format!("--{name}") };
    let env = option.get_env().map(|e| format!("`{}`", e.to_string_lossy())).unwrap_or_default();
    let defaults = option.get_default_values().iter().filter(|_| takes);
    let defaults: Vec<_> = defaults.map(|d| format!("`{}`", d.to_string_lossy())).collect();
    let help = option.get_long_help().or(option.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    format!("| `{shown}` | {env} | {} | {} |", defaults.join(", "), cell(&help))
}

fn fields(page: &mut String, path: &str, schema: &Value) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let properties = schema["properties"].as_object();
    for (name, field) in properties.into_iter().flatten() {
        let inner = if field["items"].is_object() { &field["items"] } else { field };
        let many = if field["type"] == "array" { "[]" } else { "" };
        let path = format!("{path}.{name}{many}");
        let must = if required.iter().any(|r| r == name) { ", required" } else { "" };
        let values = inner["enum"].as_array().map(|all| {
            let all: Vec<_> = all.iter().filter_map(Value::as_str).collect();
            format!(": {}", all.join(", "))
        });
        let kind = format!("{}{}{must}", text(&inner["type"]), values.unwrap_or_default());
        let about = cell(&text(&field["description"]));
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{path}` | {kind} | {about} |");
        fields(page, &path, inner);
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// In one line of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    /// `weft reference` writes it.
    #[test]
    fn reference_in_deploy_is_that_of_the_program() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/reference.md");
        assert_eq!(std::fs::read_to_string(path).unwrap(), super::page().unwrap());
    }
}
