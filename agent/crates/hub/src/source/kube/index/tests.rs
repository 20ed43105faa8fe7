use super::*;

const KINDS: [&str; 3] = ["NetworkPolicy", "Pod", "Service"];

fn document(text: &str) -> (Key, Value) {
    let value: Value = serde_yaml_ng::from_str(text).unwrap();
    let metadata = |field: &str| {
        value["metadata"].get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let kind = value["kind"].as_str().unwrap().to_owned();
    (Key { kind, namespace: metadata("namespace"), name: metadata("name") }, value)
}

fn pod(name: &str, labels: &str) -> (Key, Value) {
    document(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, labels: {{{labels}}}}}"
    ))
}

fn policy(spec: &str) -> (Key, Value) {
    document(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {spec}"
    ))
}

/// An index of [`KINDS`], which the server has listed with these objects.
fn listed(objects: &[(Key, Value)]) -> Index {
    let mut index = Index::new(KINDS, Path::new("/modules"));
    for kind in KINDS {
        list(&mut index, kind, objects);
    }
    index
}

fn list(index: &mut Index, kind: &'static str, objects: &[(Key, Value)]) {
    index.take(kind, Event::Listing);
    for (key, value) in objects.iter().filter(|(key, _)| key.kind == kind) {
        index.take(kind, Event::Listed(key.clone(), value.clone()));
    }
    index.take(kind, Event::ListEnded);
}

fn applied((key, value): (Key, Value)) -> Event {
    Event::Applied(key, value)
}

fn names(index: &Index) -> Vec<String> {
    index.objects().0.keys().map(ToString::to_string).collect()
}

fn problems(index: &Index) -> Vec<String> {
    let problems = index.objects().1.into_iter();
    problems.map(|p| format!("{}: {}", p.file.display(), p.reason)).collect()
}

#[test]
fn index_is_synced_when_every_kind_was_told() {
    let mut index = Index::new(KINDS, Path::new(""));
    list(&mut index, "Pod", &[pod("web", "")]);
    index.take("NetworkPolicy", Event::NoSuchKind);
    index.take("Service", Event::Listing);
    assert!(!index.is_synced());
    index.take("Service", Event::ListEnded);
    assert!(index.is_synced());
    assert_eq!(names(&index), ["Pod a/web"]);
}

#[test]
fn what_a_new_list_lacks_is_there_until_the_list_ends() {
    let mut index = listed(&[pod("one", ""), pod("two", ""), policy("{podSelector: {}}")]);
    index.take("Pod", Event::Listing);
    let (key, value) = pod("two", "");
    index.take("Pod", Event::Listed(key, value));
    assert_eq!(names(&index), ["NetworkPolicy a/p", "Pod a/one", "Pod a/two"]);
    index.take("Pod", Event::ListEnded);
    assert_eq!(names(&index), ["NetworkPolicy a/p", "Pod a/two"]);
}

/// A list that breaks off is begun anew; what was in its first half only is not in it.
#[test]
fn list_that_was_begun_anew_counts_alone() {
    let mut index = listed(&[pod("one", "")]);
    index.take("Pod", Event::Listing);
    let (key, value) = pod("one", "");
    index.take("Pod", Event::Listed(key, value));
    list(&mut index, "Pod", &[pod("two", "")]);
    assert_eq!(names(&index), ["Pod a/two"]);
}

#[test]
fn what_is_said_again_is_no_news_and_stays_the_same_object() {
    let mut index = listed(&[pod("web", "app: web")]);
    let key = pod("web", "").0;
    let before = index.objects().0[&key].clone();
    assert!(!index.take("Pod", applied(pod("web", "app: web"))));
    list(&mut index, "Pod", &[pod("web", "app: web")]);
    assert!(Arc::ptr_eq(&before, &index.objects().0[&key]));
    assert!(index.take("Pod", applied(pod("web", "app: other"))));
    assert!(!Arc::ptr_eq(&before, &index.objects().0[&key]));
}

#[test]
fn what_is_deleted_is_gone() {
    let mut index = listed(&[pod("web", "")]);
    assert!(index.take("Pod", Event::Deleted(pod("web", "").0)));
    assert!(!index.take("Pod", Event::Deleted(pod("web", "").0)));
    assert_eq!(names(&index), [""; 0]);
}

/// As when a definition is taken out of the server.
#[test]
fn kind_that_is_not_there_any_more_has_no_objects() {
    let mut index = listed(&[policy("{podSelector: {}}"), pod("web", "")]);
    assert!(index.take("NetworkPolicy", Event::NoSuchKind));
    assert_eq!(names(&index), ["Pod a/web"]);
}

/// Nothing is lost, and it shows, until the server speaks again. That a list begins does not yet say that it
/// can be had.
#[test]
fn server_that_does_not_answer_changes_nothing() {
    let mut index = listed(&[pod("web", "")]);
    assert!(index.take("Pod", Event::Failed("away".to_owned())));
    assert!(!index.take("Pod", Event::Failed("away".to_owned())));
    index.take("Pod", Event::Listing);
    assert_eq!(names(&index), ["Pod a/web"]);
    assert_eq!(problems(&index), ["Pod: away"]);
    assert!(index.is_complete() && index.is_synced());
    index.take("Pod", applied(pod("other", "")));
    assert_eq!(problems(&index), [""; 0]);
}

#[test]
fn object_that_cannot_be_read_stays_what_it_was() {
    let mut index = listed(&[policy("{podSelector: {matchLabels: {app: web}}}")]);
    let key = policy("{}").0;
    let before = index.objects().0[&key].clone();
    assert!(index.take("NetworkPolicy", applied(policy("{podSelector: 7}"))));
    assert!(Arc::ptr_eq(&before, &index.objects().0[&key]));
    assert!(!index.is_complete());
    let [problem] = problems(&index).try_into().unwrap();
    assert!(problem.starts_with("NetworkPolicy a/p: "), "{problem}");
    assert!(index.take("NetworkPolicy", applied(policy("{podSelector: {}}"))));
    assert!(index.is_complete());
}

/// Fails closed: what nobody has known better isolates the pods that it may be for.
#[test]
fn policy_that_was_never_read_stands_for_something() {
    let index = listed(&[policy("{podSelector: {}, ingress: 7}")]);
    assert_eq!(names(&index), ["NetworkPolicy a/p"]);
    let key = policy("{}").0;
    let Object::NetworkPolicy(manifest) = &index.objects().0[&key].object else { panic!() };
    assert!(manifest.unread);
}

#[test]
fn module_of_a_filter_is_in_the_directory_of_modules() {
    let mut index = Index::new(["PacketFilter"], Path::new("/modules"));
    let filter = document(
        "apiVersion: weft.dev/v1alpha1\nkind: PacketFilter\nmetadata: {name: f}\nspec: {module: f.wasm}",
    );
    list(&mut index, "PacketFilter", &[filter]);
    let (objects, _) = index.objects();
    let defined = objects.values().next().unwrap();
    let Object::PacketFilter(filter) = &defined.object else { panic!() };
    let path = crate::source::objects::Objects::module_path(&defined.file, filter);
    assert_eq!(path, Path::new("/modules/f.wasm"));
}
