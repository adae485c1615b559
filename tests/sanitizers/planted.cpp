// Deliberate bugs, one per argument, to check that the sanitizers report them through the emulated instructions.

#include <cstdlib>
#include <memory>

#include "instructions.h"

int main(int, char** arguments) {
    alignas(64) float numbers[32] = {};
    const std::unique_ptr<float[]> heap(new float[16]());
    __m512i sums = _mm512_set1_epi32(2147483647);
    switch (std::atoi(arguments[1])) {
        case 1: _mm512_storeu_ps(numbers, _mm512_loadu_ps(heap.get() + 1)); break;
        case 2: _mm512_storeu_ps(heap.get() + 1, _mm512_setzero_ps()); break;
        case 3: _mm512_storeu_ps(numbers, _mm512_load_ps(numbers + 4)); break;
        case 4: rerankd::dot_accumulate_u8s8(sums, _mm512_set1_epi32(1), _mm512_set1_epi32(1)); break;
        case 5: _mm512_storeu_ps(numbers, _mm512_mask_loadu_ps(_mm512_setzero_ps(), 0x8000, heap.get() + 1)); break;
        default: _mm512_storeu_ps(numbers, _mm512_mask_loadu_ps(_mm512_setzero_ps(), 0x7FFF, heap.get() + 1)); break;
    }
    return 0;
}
