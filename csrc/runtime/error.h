// Errors inside the library, and the guard that turns them into a status at the boundary.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "moela.h"

namespace moela {

struct Error : std::exception {
  int32_t status;
  std::string message;
  Error(int32_t status, std::string message) : status(status), message(std::move(message)) {}
  const char* what() const noexcept override { return message.c_str(); }
};

__attribute__((format(printf, 1, 2))) inline std::string format(const char* pattern, ...) {
  char text[1024];
  va_list args;
  va_start(args, pattern);
  vsnprintf(text, sizeof text, pattern, args);
  va_end(args);
  return text;
}

inline void require(bool condition, const char* message) {
  if (!condition) throw Error(MOELA_ERR_ARGUMENT, message);
}

inline void write_error(char* err, size_t err_len, const char* message) {
  if (err && err_len > 0) snprintf(err, err_len, "%s", message);
}

// Runs `body`; whatever it throws becomes a status and a message.
template <class Body>
int32_t guard(char* err, size_t err_len, Body body) {
  try {
    body();
    return MOELA_OK;
  } catch (const Error& error) {
    write_error(err, err_len, error.message.c_str());
    return error.status;
  } catch (const std::bad_alloc&) {
    write_error(err, err_len, "0 0 working memory of the library");
    return MOELA_ERR_MEMORY;
  } catch (const std::length_error&) {
    write_error(err, err_len, "0 0 working memory of the library");
    return MOELA_ERR_MEMORY;
  } catch (const std::exception& error) {
    write_error(err, err_len, error.what());
    return MOELA_ERR_INTERNAL;
  }
}

}  // namespace moela
