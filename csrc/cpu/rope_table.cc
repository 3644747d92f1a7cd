// The rotations of each row: out [R, dr] = factor * [cos(position * f_i) | sin(position * f_i)],
// i < dr / 2, with inverse frequencies f [dr / 2] in f64 (YaRN or plain, made by the caller).
// Angles are formed in double: at position 163839 a float angle would be off by 1e-2.
// RoPE: arXiv 2104.09864, section 3.2; YaRN: arXiv 2309.00071.
#include <cmath>
#include <cstring>

#include "tasks.h"

namespace moela {

// A cosine or sine takes as long as this many products.
static constexpr int64_t WORK = 64;

void rope_table(Context& context, int32_t rows, int64_t dr, const Weight& inverse_frequencies,
                float factor, float* out) {
  const char* frequencies = static_cast<const char*>(inverse_frequencies.parts[0]);
  for_rows(context, rows, dr * WORK, [&](int64_t row) {
    const double position = context.step.positions[row];
    float* cosine = out + row * dr;
    float* sine = cosine + dr / 2;
    for (int64_t i = 0; i < dr / 2; i++) {
      double frequency;
      memcpy(&frequency, frequencies + i * sizeof frequency, sizeof frequency);
      cosine[i] = static_cast<float>(std::cos(position * frequency) * factor);
      sine[i] = static_cast<float>(std::sin(position * frequency) * factor);
    }
  });
}

}  // namespace moela
