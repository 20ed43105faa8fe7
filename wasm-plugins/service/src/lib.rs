//! The built-in plugin that translates what is sent to Services.
