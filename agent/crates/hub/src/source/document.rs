//! Cuts a file into documents, so that a bad one does not hide the others.

/// Part of a file, with the line it begins at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    /// First line of `text`, from 1.
    pub(crate) line: usize,
    /// The document without its `---`.
    pub(crate) text: &'a str,
}

/// The documents of a YAML file that hold anything but comments. `---` in the first column begins
/// a document whatever stands before it (YAML 1.2 section 9.2), so no parser is needed.
pub(crate) fn split(file: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (number, line) in file.split_inclusive('\n').enumerate() {
        let (begins, ends) = (is_marker(line, "---"), is_marker(line, "..."));
        if begins || ends {
            push(&mut documents, start_line, file.get(start..offset));
            start_line = number + 1;
            start = offset;
            if ends || line.trim_end() == "---" {
                start += line.len();
                start_line += 1;
            }
        }
        offset += line.len();
    }
    push(&mut documents, start_line, file.get(start..));
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn push<'a>(documents: &mut Vec<Document<'a>>, line: usize, text: Option<&'a str>) {
    let Some(text) = text else { return };
    let empty = |l: &str| {
        let l = l.trim();
        l.is_empty() || l.starts_with('#') || l.starts_with('%')
    };
    if !text.lines().all(empty) {
        documents.push(Document { line, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_first_line() {
        let file = "# head\n---\na: 1\n---\n\n---\nb: 2\nc: |\n  ---\n...\n--- {d: 3}\n";
        let found: Vec<_> = split(file).iter().map(|d| (d.line, d.text)).collect();
        let expected = [(3, "a: 1\n"), (7, "b: 2\nc: |\n  ---\n"), (11, "--- {d: 3}\n")];
        assert_eq!(found, expected);
    }

    #[test]
    fn file_without_marker_is_one_document() {
        assert_eq!(split("a: 1"), [Document { line: 1, text: "a: 1" }]);
        assert_eq!(split("# nothing\n"), []);
    }
}
