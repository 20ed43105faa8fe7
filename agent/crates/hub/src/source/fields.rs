//! Fields outside of a `spec` that no object has: what is misspelt there is lost without a word.

use serde_yaml_ng::Value;

use super::policy::UnknownField;

/// What an object consists of.
const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// What an `EndpointSlice` does.
const TOP_OF_SLICE: [&str; 6] =
    ["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"];
/// Every field of `ObjectMeta`.
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Fields of an object itself, in nothing, and of its `metadata` that are not known.
pub(super) fn unknown(kind: &str, whole: &Value) -> Vec<UnknownField> {
    let top: &[&str] = if kind == "EndpointSlice" { &TOP_OF_SLICE } else { &TOP };
    let metadata = whole.get("metadata");
    let parts = [("", Some(whole), top), ("metadata", metadata, &METADATA)];
    let unknown = parts.into_iter().flat_map(|(inside, part, known)| {
        let fields = part.and_then(Value::as_mapping).into_iter().flatten();
        // Kubernetes takes a field that is null for one that is not there.
        let names = fields.filter(|(_, value)| !value.is_null()).map(|(key, _)| key);
        let names = names.map(|key| key.as_str().unwrap_or("?"));
        let unknown = names.filter(|name| !known.contains(name));
        unknown.map(move |name| UnknownField { inside: inside.to_owned(), name: name.to_owned() })
    });
    unknown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, text: &str) -> Vec<String> {
        let unknown = unknown(kind, &serde_yaml_ng::from_str(text).unwrap());
        unknown.iter().map(|u| format!("{}.{}", u.inside, u.name)).collect()
    }

    #[test]
    fn misspelt_field_is_found_beside_the_spec_and_in_the_metadata() {
        let text = "kind: Pod\nmetadata: {name: a, namspace: b, lables: {c: d}}\nspek: {}\nstatus:";
        assert_eq!(of("Pod", text), [".spek", "metadata.namspace", "metadata.lables"]);
        assert_eq!(of("Pod", "endpoints: []"), [".endpoints"]);
    }

    /// As an API server writes them.
    #[test]
    fn field_that_objects_have_is_no_misspelt_one() {
        let metadata = METADATA.map(|name| format!("{name}: x")).join(", ");
        let all = TOP
            .map(|name| format!("{name}: {{}}"))
            .join("\n")
            .replace("metadata: {}", &format!("metadata: {{{metadata}, clusterName: null}}"));
        assert_eq!(of("NetworkPolicy", &all), [""; 0]);
        assert_eq!(of("EndpointSlice", "addressType: IPv4\nendpoints: []\nports: []"), [""; 0]);
    }
}
